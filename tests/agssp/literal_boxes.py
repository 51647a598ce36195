"""Pseudo boxes once more, slowly and with other tools: torch, SciPy, and loops over pixels."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage


def literal_upsample(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Torch's interpolation, in float64."""
    tensor = torch.from_numpy(np.asarray(values, np.float64))[None, None]
    return torch.nn.functional.interpolate(
        tensor, size=(size[1], size[0]), mode="bilinear", align_corners=True
    )[0, 0].numpy()


def literal_iou(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


def literal_boxes(
    pixels: np.ndarray, threshold: float, top: int = 10, nms_iou: float = 0.8, outline: str = "components"
) -> list[tuple[tuple[int, int, int, int], float, int]]:
    """Boxes of a map at its image's size: (x, y, width, height), score and area, best first."""
    height, width = pixels.shape
    above = pixels > threshold
    if outline == "contours":
        above = ndimage.binary_fill_holes(above)
    labels, count = ndimage.label(above, structure=np.ones((3, 3)))
    found = []
    for label in range(1, count + 1):
        rows, columns = np.nonzero(labels == label)
        if len(rows) < max((height // 100) * (width // 100), 10):
            continue
        score = max(float(pixels[y, x]) for y, x in zip(rows, columns, strict=True))
        x, y = int(columns.min()), int(rows.min())
        box = (x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1)
        found.append((box, score, len(rows)))
    found.sort(key=lambda item: (-item[1], -item[2], item[0][1], item[0][0]))
    kept: list[tuple[tuple[int, int, int, int], float, int]] = []
    for item in found[:top]:
        if all(literal_iou(item[0], other[0]) <= nms_iou for other in kept):
            kept.append(item)
    return kept
