"""The detectors, each around any backbone, as configurations of mmyolo's and mmdet's classes."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from baselines import backbones
from baselines.backbones import Backbone
from baselines.detectors import dino, faster_rcnn, yolov8
from datasets_builders.errors import UserError, unknown_name

if TYPE_CHECKING:
    import torch

DETECTORS = ("yolov8", "faster_rcnn", "dino")

_OF_MMDET = {"faster_rcnn": faster_rcnn.config, "dino": dino.config}

# Letterboxed squares already: there is nothing to pad.
_PREPROCESSOR = {
    "type": "mmdet.DetDataPreprocessor",
    "mean": [0.0, 0.0, 0.0],
    "std": [255.0, 255.0, 255.0],
    "bgr_to_rgb": True,
}


@lru_cache(maxsize=1)
def _sizes() -> dict[str, dict[str, dict[str, int]]]:
    return yaml.safe_load(Path(__file__).with_name("sizes.yaml").read_text(encoding="utf-8"))


def architecture(detector: str, size: str | None) -> dict[str, int] | None:
    """Returns the numbers behind a detector's size; None for YOLOv8, whose width follows its backbone.

    Args:
        detector: One of `DETECTORS`.
        size: A name of `sizes.yaml`; None for YOLOv8.

    Raises:
        UserError: No detector has this name, or it has no such size.
    """
    if detector not in DETECTORS:
        raise unknown_name("detector", detector, DETECTORS, see="python -m benchmark list")
    known = _sizes().get(detector, {})
    if not known and size is None:
        return None
    if not known:
        raise UserError(
            f"{detector} has no sizes: its width follows its backbone. Leave `size` out of its recipe."
        )
    if size not in known:
        raise unknown_name(
            f"size of {detector}", str(size), list(known), see="baselines/detectors/sizes.yaml"
        )
    return dict(known[size])


def backbone_config(backbone: Backbone) -> dict[str, Any]:
    """Describes a backbone, as it stands in our detectors, for mmengine's registry."""
    # CSPDarknet takes the activation and norm of the detector that it comes from.
    shared = {"norm_cfg": yolov8.NORM, "act_cfg": yolov8.ACTIVATION} if backbone.name == "csp_darknet" else {}
    return {**backbone.config, **shared}


def detector_config(
    detector: str,
    backbone: Backbone,
    num_classes: int,
    *,
    test: dict[str, float],
    losses: dict[str, float] | None = None,
    assigner: dict[str, float] | None = None,
    size: str | None = None,
) -> dict[str, Any]:
    """Describes a detector for mmengine's registry.

    Args:
        detector: One of `DETECTORS`.
        backbone: Its backbone.
        num_classes: Number of defect classes, at least 1.
        test: `score_threshold`, `nms_iou` (without meaning for DINO), `max_detections`.
        losses: YOLOv8's loss weights `cls`, `box`, `dfl`; the others have mmdet's.
        assigner: `topk`, `alpha`, `beta` of YOLOv8's task-aligned assigner; the others have mmdet's.
        size: For the others: a name of `sizes.yaml`.

    Returns:
        The configuration; its types name their scopes.

    Raises:
        UserError: No detector or size has this name, or what YOLOv8 needs is missing.
    """
    numbers = architecture(detector, size)
    described = backbone_config(backbone)
    if numbers is not None:
        return _OF_MMDET[detector](described, backbone, num_classes, numbers, test, dict(_PREPROCESSOR))
    if losses is None or assigner is None:
        raise UserError("The recipe of yolov8 needs `losses` and `assigner`. See: docs/protocols.md")
    return yolov8.config(described, backbone, num_classes, losses, assigner, test)


def build_detector(config: dict[str, Any]) -> torch.nn.Module:
    """Builds a detector from `detector_config`; its weights are initialised when the training starts."""
    from baselines import openmmlab

    openmmlab.activate()
    import mmyolo.models  # noqa: F401  (registers the classes)
    from mmengine import ConfigDict
    from mmengine.registry import DefaultScope
    from mmyolo.registry import MODELS

    import baselines.detectors.letterboxed  # noqa: F401  (registers the classes)

    backbones.register()
    # mmdet builds parts of its own, such as IoU calculators, by names without a scope.
    ours = config["type"].startswith("agssp.")
    with DefaultScope.overwrite_default_scope("mmdet") if ours else nullcontext():
        return MODELS.build(ConfigDict(config))


def count_parameters(model: torch.nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
