"""Where a record's detector looks: attention maps of its backbone, from the weights that it ended with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agssp.display import quieten_libraries
from benchmark.record_schema import Record
from benchmark.trained import Trained, build, describe

if TYPE_CHECKING:
    import datasets

STAGES = 2
"""Of the backbone, from its end: those that pretraining guides."""
STRIDES = (16, 32)


def attention_maps(
    record: Record, weights: Path, images: datasets.Dataset
) -> list[tuple[NDArray[np.float32], ...]]:
    """Computes attention maps as the detector saw the images in its validation.

    An attention map is the sum of squares over the channels of a stage's features (paper, equation 6); Swin's are
    taken before its output norms.

    Args:
        record: Names the detector and its settings.
        weights: The whole detector.
        images: Rows in the detection schema.

    Returns:
        For each image the map of each of the last two stages, (h, w) float32 in [0, 1], divided by its maximum; h to w
        as the image's height to width.

    Raises:
        UserError: The record's settings are of another version, or the weights are not of this detector.
    """
    import torch

    quieten_libraries()
    from agssp.distillation import attention, caught_features
    from baselines.training.data import validation_loader

    described = describe(record, None)
    model = build(Trained(described, weights))
    maps = []
    with torch.no_grad(), caught_features(model.backbone, STAGES) as passes:
        for batch in validation_loader(images, described.recipe):
            data = model.data_preprocessor(batch, False)
            passes.clear()
            model.backbone(data["inputs"])
            side = tuple(data["inputs"].shape[-2:])
            stages = [
                torch.nn.functional.interpolate(
                    attention(features)[:, None], side, mode="bilinear", align_corners=False
                )[:, 0].numpy()
                for features in passes[0]
            ]
            for number, sample in enumerate(data["data_samples"]):
                maps.append(tuple(_of_image(stage[number], sample) for stage in stages))
    return maps


def _of_image(attended: NDArray[np.float32], sample: Any) -> NDArray[np.float32]:
    """Takes the letterbox's border away; what lies in it is not of the image."""
    top, bottom, left, right = (round(float(side)) for side in sample.pad_param)
    height, width = attended.shape
    inside = attended[top : height - bottom, left : width - right]
    return inside / max(float(inside.max()), float(np.finfo(np.float32).tiny))
