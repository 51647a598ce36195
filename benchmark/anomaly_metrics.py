"""How well anomaly maps find defects: exact metrics of images and pixels, and the IoU of thresholded maps.

Those of ranks come from one sorting of the scores. Definitions: scikit-learn's for AUROC and average precision; AUPRO
as Bergmann et al. (MVTec AD) define it; the mask IoU of `agssp.map_quality`, as in the paper's Fig. 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from agssp.map_quality import mask_ious
from agssp.upsampling import upsample
from benchmark.evaluate import Percent
from datasets_builders.errors import UserError

MARGIN = 0.1
"""The paper's c: the adaptive threshold is the mean of the maps' maxima, less this."""
FIXED_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 40))
"""The sweep, over the range of KeAD's maps, 0 to 2."""
MAX_FALSE_POSITIVE_RATE = 0.3
"""Up to where AUPRO integrates."""

_REGION_BITS = np.uint64(32)


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ImageMetrics(_Numbers):
    """How well the image scores tell images with defects from those without; percent."""

    auroc: Percent
    """Area under the ROC curve."""
    ap: Percent
    """Average precision."""
    f1_max: Percent
    """F1 at the best threshold."""


class PixelMetrics(_Numbers):
    """How well the maps tell defect pixels from sound ones; percent."""

    auroc: Percent
    """Area under the ROC curve of all pixels."""
    ap: Percent
    """Average precision of all pixels."""
    f1_max: Percent
    """F1 at the best threshold."""
    aupro: Percent
    """Area under the per-region overlap, for false positive rates up to 0.3, of the most possible there."""


class IouAt(_Numbers):
    """The maps above a threshold against the true masks."""

    threshold: float
    """Values above it count as defect."""
    iou: Percent
    """Intersection over union at the image's size, mean over the images with defects."""


class MaskIou(_Numbers):
    """IoU of thresholded maps: the paper's adaptive threshold, and fixed ones (Fig. 7)."""

    adaptive: IouAt
    """At the mean of the maps' maxima, less 0.1."""
    fixed: Annotated[tuple[IouAt, ...], Field(max_length=1000)]
    """At each of `FIXED_THRESHOLDS`."""

    @property
    def best_fixed(self) -> IouAt:
        """The fixed threshold that is best with hindsight; of equal ones the lowest."""
        return max(self.fixed, key=lambda at: at.iou)


class AnomalyMetrics(_Numbers):
    """All metrics of one detector on one split."""

    images: Annotated[int, Field(ge=1)]
    """Images scored."""
    anomalous_images: Annotated[int, Field(ge=0)]
    """Of these, with defects."""
    pixel_images: Annotated[int, Field(ge=0)]
    """Of these, those whose every pixel is labelled: with a mask, or without defects."""
    image: ImageMetrics | None
    """None where all images have defects, or none has: then no such number exists."""
    pixel: PixelMetrics | None
    """None where no defect has a mask: then no such number exists."""
    mask_iou: MaskIou | None
    """As `pixel`."""


@dataclass(frozen=True)
class Truth:
    """What is known of one image.

    Attributes:
        anomalous: Whether it has a defect.
        mask: (H, W) bool, True on defects; None where it has defects and nobody drew them. Of the image's size; a mask
            without any defect may have any size.
    """

    anomalous: bool
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Curve:
    """What is found at every threshold: one entry for each distinct score, highest first.

    Attributes:
        scores: (n,) float32, distinct, descending.
        true: (n,) int64, positives with at least that score.
        false: (n,) int64, negatives with at least that score.
        overlap: (n,) float64, the share of a region that has at least that score, mean over regions.
    """

    scores: NDArray[np.float32]
    true: NDArray[np.int64]
    false: NDArray[np.int64]
    overlap: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.float32], regions: NDArray[np.integer]) -> Curve:
        """Sorts scores.

        Args:
            scores: (n,) finite.
            regions: (n,) 0 for a negative, k for a part of region k; numbers from 1 without gaps, below 2^32.

        Raises:
            ValueError: There is no positive, or no negative.
        """
        sizes = np.bincount(regions)
        if len(sizes) < 2 or sizes[0] == 0:
            raise ValueError("a curve needs positives and negatives")
        # Sorting one number that holds both score and region is several times as fast as an argsort.
        keys = _ordered_bits(scores).astype(np.uint64) << _REGION_BITS
        keys |= regions.astype(np.uint64)
        keys.sort()
        keys = keys[::-1]
        bits = (keys >> _REGION_BITS).astype(np.uint32)
        region = keys.astype(np.uint32)  # the lower half
        ends = np.append(np.flatnonzero(bits[1:] != bits[:-1]), len(bits) - 1)
        true = np.cumsum(region > 0)[ends]
        weights = np.zeros(len(sizes))
        weights[1:] = 1.0 / (sizes[1:] * (len(sizes) - 1))
        return cls(
            scores=_from_ordered_bits(bits[ends]),
            true=true,
            false=ends + 1 - true,
            overlap=np.cumsum(weights[region])[ends],
        )

    def auroc(self) -> float:
        """Returns the area under the ROC curve."""
        true, false = _from_zero(self.true), _from_zero(self.false)
        twice = int(np.sum(np.diff(false) * (true[1:] + true[:-1])))
        return twice / (2 * int(true[-1]) * int(false[-1]))

    def average_precision(self) -> float:
        """Returns the mean precision over all positives, without interpolation."""
        found = np.diff(_from_zero(self.true))
        return float(np.sum(found * (self.true / (self.true + self.false)))) / int(self.true[-1])

    def f1_max(self) -> float:
        """Returns the highest F1 over all thresholds."""
        return float(np.max(2 * self.true / (self.true + self.false + self.true[-1])))

    def aupro(self, limit: float = MAX_FALSE_POSITIVE_RATE) -> float:
        """Returns the area under overlap against false positive rate up to a limit, divided by the limit."""
        rate = _from_zero(self.false) / int(self.false[-1])
        overlap = _from_zero(self.overlap)
        end = int(np.searchsorted(rate, limit, side="right"))
        rates, overlaps = rate[:end], overlap[:end]
        if rates[-1] < limit:
            rates = np.append(rates, limit)
            overlaps = np.append(
                overlaps, np.interp(limit, rate[end - 1 : end + 1], overlap[end - 1 : end + 1])
            )
        return float(np.trapezoid(overlaps, rates)) / limit


def _from_zero(values: NDArray) -> NDArray:
    return np.concatenate([[0], values])


def _ordered_bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Turns floats into whole numbers of the same order."""
    bits = (np.ascontiguousarray(values, np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _from_ordered_bits(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    return np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits).view(np.float32)


def resize_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Brings a mask to the evaluation's size: bilinear with antialiasing, then threshold 0.5.

    Args:
        mask: (H, W).
        size: S.

    Returns:
        (S, S).
    """
    from PIL import Image

    # Pillow computes in whole numbers: the same on every machine.
    pixels = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    return np.asarray(pixels.resize((size, size), Image.Resampling.BILINEAR)) > 127


def check_measurable(truths: Sequence[Truth]) -> None:
    """Looks whether any number can be computed, before hours are spent on maps.

    Raises:
        UserError: Neither are there images of both kinds, nor masks.
    """
    kinds = {truth.anomalous for truth in truths}
    if len(kinds) < 2 and not any(truth.mask is not None and truth.mask.any() for truth in truths):
        raise UserError(
            "Nothing can be measured on this split: it has no masks, and not both images with defects and images "
            "without. Choose a dataset with masks (python -m datasets_builders list), or prepare it with them."
        )


def evaluate(
    maps: NDArray[np.float32], scores: NDArray[np.float32], truths: Sequence[Truth], size: int
) -> AnomalyMetrics:
    """Computes all metrics.

    Args:
        maps: (N, h, w) finite, higher = more anomalous.
        scores: (N,) finite, of whole images.
        truths: N of them.
        size: S; pixels are compared at S x S, maps interpolated as in the paper's evaluation: bilinear, corner pixels
            on corner patches.

    Raises:
        UserError: Nothing can be said: neither defect-free images nor masks.
    """
    if not len(maps) == len(scores) == len(truths):
        raise ValueError("as many maps, scores and truths")
    check_measurable(truths)
    anomalous = np.array([truth.anomalous for truth in truths])
    labelled = [index for index, truth in enumerate(truths) if truth.mask is not None]
    image = pixel = mask_iou = None
    if anomalous.any() and not anomalous.all():
        curve = Curve.of(scores, anomalous.astype(np.uint32))
        image = ImageMetrics(
            auroc=100 * curve.auroc(), ap=100 * curve.average_precision(), f1_max=100 * curve.f1_max()
        )
    regions = _regions([truths[index].mask for index in labelled], size)
    if regions.any() and not regions.all():
        values = np.stack([upsample(maps[index], (size, size)) for index in labelled])
        curve = Curve.of(values.ravel(), regions.ravel())
        pixel = PixelMetrics(
            auroc=100 * curve.auroc(),
            ap=100 * curve.average_precision(),
            f1_max=100 * curve.f1_max(),
            aupro=100 * curve.aupro(),
        )
        mask_iou = _mask_iou(maps, truths)
    return AnomalyMetrics(
        images=len(truths),
        anomalous_images=int(anomalous.sum()),
        pixel_images=len(labelled),
        image=image,
        pixel=pixel,
        mask_iou=mask_iou,
    )


def adaptive_threshold(maps: NDArray[np.float32]) -> float:
    """Returns the paper's threshold of a category: the mean of its maps' maxima, less `MARGIN`."""
    return float(maps.max(axis=(1, 2)).astype(np.float64).mean()) - MARGIN


def _mask_iou(maps: NDArray[np.float32], truths: Sequence[Truth]) -> MaskIou:
    thresholds = [adaptive_threshold(maps), *FIXED_THRESHOLDS]
    of_images = [
        mask_ious(values, truth.mask, thresholds)
        for values, truth in zip(maps, truths, strict=True)
        if truth.mask is not None and truth.mask.any()
    ]
    ious = (100 * np.mean(of_images, axis=0)).tolist()
    adaptive, *fixed = (IouAt(threshold=at, iou=iou) for at, iou in zip(thresholds, ious, strict=True))
    return MaskIou(adaptive=adaptive, fixed=tuple(fixed))


def _regions(masks: Sequence[NDArray[np.bool_] | None], size: int) -> NDArray[np.uint32]:
    """Numbers the connected regions (8 neighbours) of all masks at a size, from 1; 0 is sound: (N, S, S)."""
    import cv2

    numbered = []
    total = 0
    for mask in masks:
        assert mask is not None
        resized = resize_mask(mask, size).astype(np.uint8)
        count, labels = cv2.connectedComponents(resized, connectivity=8)
        numbered.append(np.where(labels > 0, labels + total, 0).astype(np.uint32))
        total += count - 1
    return np.stack(numbered) if numbered else np.zeros(0, np.uint32)
