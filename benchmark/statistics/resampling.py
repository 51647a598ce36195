"""mAP of a split whose images are drawn again and again: which detection is right is decided once.

COCO matches detections and objects within one image, so drawing images with replacement changes no match. It only
changes how often each detection and object counts. A class's detections are therefore sorted once, and a draw is a
weighted cumulative sum along them, computed for many draws at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, match

RESAMPLES = 1000

_IOU_THRESHOLDS = 10
_RECALL_LEVELS = np.linspace(0.0, 1.0, 101)  # the very floats that pycocotools compares with
_CHUNK = 2**22  # numbers in one temporary array
Weights = NDArray[np.integer[Any]]


class _Finds(NamedTuple):
    """The true positives of some IoU thresholds that ignore the same detections.

    Precision is needed at true positives alone: between two of them it only falls, and recall stays.

    Attributes:
        images: (positions,) image of each, by falling score.
        steps: (images, positions) sparse; how many detections of an image count at a position, after the one before.
        at: For each threshold its number, and which of the positions are true positives there.
    """

    images: NDArray[np.int64]
    steps: sparse.csr_array
    at: tuple[tuple[int, NDArray[np.int64]], ...]


class _Class(NamedTuple):
    objects: NDArray[np.float64]  # (images,) objects that count
    finds: tuple[_Finds, ...]


@dataclass(frozen=True, eq=False)
class MatchedSplit:
    """A split's detections after matching: mAP under any weights of its images.

    Attributes:
        classes: Class names.
        images: How many images.
    """

    classes: tuple[str, ...]
    images: int
    _classes: tuple[_Class, ...]

    @classmethod
    def of(cls, ground_truth: GroundTruth, detections: Detections) -> MatchedSplit:
        """Matches once.

        Raises:
            UserError: Images or classes differ between the two.
        """
        images = len(ground_truth.image_ids)
        entries = defaultdict(list)
        for entry in match(ground_truth, detections):
            entries[entry["category_id"] - 1].append(entry)
        classes = tuple(_sorted(entries[k], images) for k in range(len(ground_truth.classes)))
        return cls(ground_truth.classes, images, classes)

    def average_precision(self, weights: Weights) -> NDArray[np.float64]:
        """Computes average precision as if image i stood in the split `weights[:, i]` times.

        The result is pycocotools' on such a split, except where two detections of one class in one image have equal
        scores to the last bit: which copy of them comes first is then no property of the split.

        Args:
            weights: (draws, images), at least 0.

        Returns:
            (draws, classes, 2): AP@.5 and AP@.5:.95 in percent; NaN where a draw has no object of a class.
        """
        weights = np.asarray(weights)
        widest = max((len(find.images) for c in self._classes for find in c.finds), default=0)
        chunk = max(1, _CHUNK // max(widest, self.images, len(_RECALL_LEVELS)))
        parts = [
            self._chunk(weights[i : i + chunk].astype(np.float64)) for i in range(0, len(weights), chunk)
        ]
        return np.concatenate(parts)

    def _chunk(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        result = np.full((len(weights), len(self._classes), 2), np.nan)
        for k, matched in enumerate(self._classes):
            objects = weights @ matched.objects
            present = objects > 0
            if present.any():
                precision = _precision(matched, weights[present], objects[present])
                result[present, k, 0] = 100 * precision[:, 0]
                result[present, k, 1] = 100 * precision.mean(axis=1)
        return result


def mean_ap(average_precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Averages over the classes that have objects.

    Args:
        average_precision: (draws, classes, 2) with NaN where a class has none.

    Returns:
        (draws, 2): mAP@.5 and mAP@.5:.95; NaN for a draw without any object.
    """
    present = ~np.isnan(average_precision)
    counts = present.sum(axis=1)
    sums = np.where(present, average_precision, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def draw_images(images: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.uint16]:
    """Draws as many images as a split has, with replacement, many times.

    Equal arguments give equal draws: rows on one split are thereby compared on the same images.

    Returns:
        (resamples, images): how often each image was drawn.
    """
    rng = np.random.default_rng(seed)
    draws = (np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(resamples))
    return np.stack([draw.astype(np.uint16) for draw in draws])


def _sorted(entries: Sequence[dict[str, Any]], images: int) -> _Class:
    """Collects one class's matches over all images in COCO's order: by falling score, else by image."""
    objects = np.zeros(images)
    for entry in entries:
        objects[entry["image_id"] - 1] = np.count_nonzero(~np.asarray(entry["gtIgnore"], bool))
    answered = [entry for entry in entries if len(entry["dtScores"])]
    if not answered:
        return _Class(objects, ())
    answered.sort(key=lambda entry: entry["image_id"])
    scores = np.concatenate([entry["dtScores"] for entry in answered])
    image = np.concatenate(
        [np.full(len(entry["dtScores"]), entry["image_id"] - 1, np.int64) for entry in answered]
    )
    matched, ignored = (
        np.concatenate([np.asarray(entry[name]).astype(bool) for entry in answered], axis=1)
        for name in ("dtMatches", "dtIgnore")
    )
    order = np.argsort(-scores, kind="stable")
    image, matched, ignored = image[order], matched[:, order], ignored[:, order]
    # Only crowd regions make a threshold ignore detections; without them all ten share one group.
    patterns, group = np.unique(ignored, axis=0, return_inverse=True)
    finds = (
        _finds(image, matched & ~ignored, ~patterns[g], np.flatnonzero(group.ravel() == g), images)
        for g in range(len(patterns))
    )
    return _Class(objects, tuple(find for find in finds if len(find.images)))


def _finds(
    image: NDArray[np.int64],
    true: NDArray[np.bool_],
    counts: NDArray[np.bool_],
    thresholds: NDArray[np.int64],
    images: int,
) -> _Finds:
    positions = np.flatnonzero(true[thresholds].any(axis=0))
    ranks = np.flatnonzero(counts)
    step = np.searchsorted(positions, ranks)
    before_last = step < len(positions)
    ones = np.ones(np.count_nonzero(before_last))
    where = (image[ranks[before_last]], step[before_last])
    return _Finds(
        images=image[positions],
        steps=sparse.csr_array((ones, where), shape=(images, len(positions))),
        at=tuple((int(t), np.flatnonzero(true[t][positions])) for t in thresholds),
    )


def _precision(
    matched: _Class, weights: NDArray[np.float64], objects: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns (draws, 10): precision, mean over the recall levels, for draws that have objects of the class."""
    draws = len(weights)
    result = np.zeros((draws, _IOU_THRESHOLDS))
    needed = _needed(objects)
    # All rows are searched at once: each is moved above everything in the row before.
    shift = (np.arange(draws) * (objects.max() + 1))[:, None]
    rows = np.arange(draws)[:, None]
    for find in matched.finds:
        detections = np.cumsum(weights @ find.steps, axis=1)
        for threshold, columns in find.at:
            if not len(columns):
                continue
            found = np.cumsum(weights[:, find.images[columns]], axis=1)
            precision = found / (detections[:, columns] + np.spacing(1))
            envelope = np.zeros((draws, len(columns) + 1))  # the last: a recall that is not reached
            envelope[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            place = np.searchsorted((found + shift).ravel(), (needed + shift).ravel()).reshape(needed.shape)
            result[:, threshold] = envelope[rows, place - rows * len(columns)].mean(axis=1)
    return result


def _needed(objects: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (draws, 101): the fewest objects whose share is at least each recall level, compared as floats."""
    total = objects[:, None]
    count = np.ceil(_RECALL_LEVELS * total)
    count -= (count - 1) / total >= _RECALL_LEVELS
    return count + (count / total < _RECALL_LEVELS)
