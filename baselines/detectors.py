"""Detector configurations: each detector's neck and head around any backbone, from mmyolo's and mmdet's classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from baselines.backbones import Backbone
from datasets_builders.errors import unknown_name

if TYPE_CHECKING:
    import torch

DETECTORS = ("yolov8",)
STRIDES = (8, 16, 32)

_NORM = {"type": "BN", "momentum": 0.03, "eps": 0.001}
_ACTIVATION = {"type": "SiLU", "inplace": True}


def backbone_config(backbone: Backbone) -> dict[str, Any]:
    """Describes a backbone, as it stands in our detectors, for mmengine's registry."""
    # CSPDarknet takes the activation and norm of the detector around it.
    shared = {"norm_cfg": _NORM, "act_cfg": _ACTIVATION} if backbone.name == "csp_darknet" else {}
    return {**backbone.config, **shared}


def detector_config(
    detector: str,
    backbone: Backbone,
    num_classes: int,
    *,
    losses: dict[str, float],
    assigner: dict[str, float],
    test: dict[str, float],
) -> dict[str, Any]:
    """Describes a detector for mmengine's registry.

    Args:
        detector: One of `DETECTORS`.
        backbone: Its backbone.
        num_classes: Number of defect classes, at least 1.
        losses: Loss weights `cls`, `box`, `dfl`.
        assigner: Task-aligned assigner's `topk`, `alpha`, `beta`.
        test: `score_threshold`, `nms_iou`, `max_detections`.

    Returns:
        The configuration (scope `mmyolo`).

    Raises:
        UserError: No detector has this name.
    """
    if detector not in DETECTORS:
        raise unknown_name("detector", detector, DETECTORS, see="python -m benchmark list")
    neck = backbone.neck
    widen = neck["widen_factor"]
    return {
        "type": "mmyolo.YOLODetector",
        "data_preprocessor": {
            "type": "mmyolo.YOLOv5DetDataPreprocessor",
            "mean": [0.0, 0.0, 0.0],
            "std": [255.0, 255.0, 255.0],
            "bgr_to_rgb": True,
        },
        "backbone": backbone_config(backbone),
        "neck": {
            "type": "mmyolo.YOLOv8PAFPN",
            "deepen_factor": 0.33,
            "widen_factor": widen,
            "in_channels": neck["in_channels"],
            "out_channels": neck["out_channels"],
            "num_csp_blocks": 3,
            "norm_cfg": _NORM,
            "act_cfg": _ACTIVATION,
        },
        "bbox_head": {
            "type": "mmyolo.YOLOv8Head",
            "head_module": {
                "type": "mmyolo.YOLOv8HeadModule",
                "num_classes": num_classes,
                "in_channels": neck["out_channels"],
                "widen_factor": widen,
                "reg_max": 16,
                "norm_cfg": _NORM,
                "act_cfg": _ACTIVATION,
                "featmap_strides": list(STRIDES),
            },
            "prior_generator": {"type": "mmdet.MlvlPointGenerator", "offset": 0.5, "strides": list(STRIDES)},
            "bbox_coder": {"type": "mmyolo.DistancePointBBoxCoder"},
            "loss_cls": {
                "type": "mmdet.CrossEntropyLoss",
                "use_sigmoid": True,
                "reduction": "none",
                "loss_weight": losses["cls"],
            },
            "loss_bbox": {
                "type": "mmyolo.IoULoss",
                "iou_mode": "ciou",
                "bbox_format": "xyxy",
                "reduction": "sum",
                "loss_weight": losses["box"],
                "return_iou": False,
            },
            "loss_dfl": {
                "type": "mmdet.DistributionFocalLoss",
                "reduction": "mean",
                "loss_weight": losses["dfl"],
            },
        },
        "train_cfg": {
            "assigner": {
                "type": "mmyolo.BatchTaskAlignedAssigner",
                "num_classes": num_classes,
                "use_ciou": True,
                "topk": assigner["topk"],
                "alpha": assigner["alpha"],
                "beta": assigner["beta"],
                "eps": 1e-9,
            }
        },
        "test_cfg": {
            "multi_label": True,
            "nms_pre": 30000,
            "score_thr": test["score_threshold"],
            "nms": {"type": "nms", "iou_threshold": test["nms_iou"]},
            "max_per_img": test["max_detections"],
        },
    }


def build_detector(config: dict[str, Any]) -> torch.nn.Module:
    """Builds a detector from `detector_config`; its weights are initialised when the training starts."""
    from baselines import openmmlab

    openmmlab.activate()
    import mmyolo.models  # noqa: F401  (registers the classes)
    from mmengine import ConfigDict
    from mmyolo.registry import MODELS

    import baselines.lite0  # noqa: F401  (registers the class)

    return MODELS.build(ConfigDict(config))


def count_parameters(model: torch.nn.Module) -> int:
    """Returns the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
