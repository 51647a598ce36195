"""How good maps and pseudo boxes are, where the truth is known (paper Fig. 7, and recall of the boxes)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agssp.map_store import MapRow
from agssp.upsampling import Map, upsample
from datasets_builders.errors import UserError


def mask_ious(values: Map, truth: NDArray[np.bool_], thresholds: ArrayLike) -> NDArray[np.float64]:
    """Compares the binary masks of a map, one per threshold, with the true mask.

    Args:
        values: (h, w) float32, the map on its grid; it is brought to the mask's size as for pseudo boxes.
        truth: (H, W) bool, true on defects.
        thresholds: (k,); pixels above one, rounded to float32, are in its mask.

    Returns:
        (k,) intersection over union of all pixels; NaN where both masks are empty.
    """
    limits = np.asarray(thresholds, np.float32)
    pixels = upsample(values, (truth.shape[1], truth.shape[0]))
    # Sorted once, a threshold costs a look-up.
    shared = _count_above(pixels[truth], limits)
    union = int(truth.sum()) + _count_above(pixels.ravel(), limits) - shared
    with np.errstate(invalid="ignore"):
        return shared / union


def _count_above(values: Map, limits: Map) -> NDArray[np.int64]:
    return len(values) - np.searchsorted(np.sort(values), limits, side="right")


@dataclass(frozen=True)
class ThresholdStudy:
    """Adaptive thresholds beside fixed ones.

    Attributes:
        images: Number of images with defects; the means are over these.
        adaptive: Mean IoU with every category's own threshold.
        fixed: Fixed threshold -> mean IoU with it for all images.
    """

    images: int
    adaptive: float
    fixed: dict[float, float]

    @property
    def best_fixed(self) -> float:
        """The fixed threshold that did best; the lowest of equals."""
        return max(self.fixed, key=lambda limit: (self.fixed[limit], -limit))


def study_thresholds(
    examples: Iterable[tuple[MapRow, NDArray[np.bool_]]],
    adaptive: Mapping[str, float],
    fixed: Sequence[float],
) -> ThresholdStudy:
    """Measures the masks of adaptive thresholds against those of fixed ones (paper Fig. 7).

    The best fixed threshold is found on the same images, with their true masks, so it favours the fixed ones.
    Images without defects are left out: the IoU of an empty mask says nothing of where a threshold cuts.

    Args:
        examples: Maps with their true masks, bool of the image's size; read once.
        adaptive: Threshold of every category, as of `pseudo_boxes.thresholds`.
        fixed: Thresholds to try, at least one.

    Raises:
        UserError: No image has a defect, or a category has no threshold.
    """
    if not fixed:
        raise UserError("No fixed thresholds to compare with: give at least one.")
    sums, images = np.zeros(len(fixed) + 1), 0
    for row, truth in examples:
        if not truth.any():
            continue
        if row.category not in adaptive:
            raise UserError(f"Category {row.category!r} has no threshold: compute them from the same maps.")
        sums += mask_ious(row.map, truth, [adaptive[row.category], *fixed])
        images += 1
    if not images:
        raise UserError("None of the images has a defect in its true mask: mask IoU needs some.")
    own, *others = (sums / images).tolist()
    return ThresholdStudy(images, own, dict(zip(map(float, fixed), others, strict=True)))


def box_ious(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Returns the (n, m) intersection over union of boxes (n, 4) and (m, 4): left, top, width, height."""
    a = np.asarray(first, np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, np.float64).reshape(1, -1, 4)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = np.prod((high - low).clip(min=0), axis=2)
    union = np.prod(a[..., 2:], axis=2) + np.prod(b[..., 2:], axis=2) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def box_recall(images: Iterable[tuple[ArrayLike, ArrayLike]], iou: float = 0.3) -> float:
    """Returns the share of true boxes that a pseudo box meets.

    A pseudo box may meet several true ones: of defects that touch, a map shows one region.

    Args:
        images: Of every image the pseudo boxes (n, 4) and the true boxes (m, 4): left, top, width, height.
        iou: Least intersection over union.

    Returns:
        0..1; NaN where there is no true box at all.
    """
    met = total = 0
    for boxes, truth in images:
        overlap = box_ious(boxes, truth)
        total += overlap.shape[1]
        met += int((overlap.max(axis=0, initial=-1.0) >= iou).sum())
    return met / total if total else float("nan")
