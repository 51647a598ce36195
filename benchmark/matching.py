"""Which detections find an object, which are wrong, and which objects are missed: by COCO's rule, at IoU 0.5."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, match

IOU = 0.5
"""The first of COCO's ten thresholds."""


@dataclass(frozen=True, eq=False)
class Matching:
    """The matching of a split. Detections come highest score first, so a threshold only takes matches away.

    Attributes:
        scores: (n,) of the detections.
        found: (n,) int64, row of the object that a detection finds, -1 where it finds none.
        judged: (n,) bool, False for detections that do not count: on a crowd region, or beyond COCO's limit of 100.
        finder: (m,) int64, row of the detection that finds an object, -1 where none does.
        counts: (m,) bool, False for crowd regions.
    """

    scores: NDArray[np.float32]
    found: NDArray[np.int64]
    judged: NDArray[np.bool_]
    finder: NDArray[np.int64]
    counts: NDArray[np.bool_]

    def best_threshold(self) -> float:
        """Returns the score from which on the detections of the whole split have the highest F1.

        The highest one where several do, or where nothing is found; 0 where nothing is detected.
        """
        order = np.argsort(-self.scores[self.judged], kind="stable")
        scores = self.scores[self.judged][order]
        if not len(scores):
            return 0.0
        right = np.cumsum(self.found[self.judged][order] >= 0)
        f1 = 2 * right / (np.arange(1, len(scores) + 1) + self.counts.sum())
        # All detections of one score are in or out together.
        f1[:-1][scores[:-1] == scores[1:]] = -1
        return float(scores[int(f1.argmax())])

    def right(self, threshold: float) -> NDArray[np.bool_]:
        """Returns (n,): detections that find an object (TP)."""
        return self.judged & (self.found >= 0) & (self.scores >= threshold)

    def wrong(self, threshold: float) -> NDArray[np.bool_]:
        """Returns (n,): detections that find none (FP)."""
        return self.judged & (self.found < 0) & (self.scores >= threshold)

    def missed(self, threshold: float) -> NDArray[np.bool_]:
        """Returns (m,): objects that no detection finds (FN)."""
        by_any = self.finder >= 0
        seen = np.zeros(len(self.finder), bool)
        seen[by_any] = self.scores[self.finder[by_any]] >= threshold
        return self.counts & ~seen


def match_all(ground_truth: GroundTruth, detections: Detections) -> Matching:
    """Matches a split.

    Raises:
        UserError: Images or classes differ between the two.
    """
    found = np.full(len(detections), -1, np.int64)
    judged = np.zeros(len(detections), bool)
    finder = np.full(len(ground_truth.labels), -1, np.int64)
    for entry in match(ground_truth, detections):
        # Its ids are our rows, from 1.
        rows = np.asarray(entry["dtIds"], np.int64) - 1
        objects = np.asarray(entry["gtIds"], np.int64) - 1
        judged[rows] = ~np.asarray(entry["dtIgnore"], bool)[0]
        found[rows] = np.asarray(entry["dtMatches"], np.int64)[0] - 1
        finder[objects] = np.asarray(entry["gtMatches"], np.int64)[0] - 1
    counts = ~ground_truth.crowd
    return Matching(detections.scores, found, judged, np.where(counts, finder, -1), counts)


def f1_of_images(
    matching: Matching,
    threshold: float,
    image_of_detection: NDArray[np.int64],
    image_of_object: NDArray[np.int64],
    images: int,
) -> NDArray[np.float64]:
    """Returns the F1 of each image, (images,), 0 to 1; 1 where there is nothing to find and nothing was detected."""
    right, wrong = (
        np.bincount(image_of_detection[chosen], minlength=images)
        for chosen in (matching.right(threshold), matching.wrong(threshold))
    )
    missed = np.bincount(image_of_object[matching.missed(threshold)], minlength=images)
    total = 2 * right + wrong + missed
    return np.where(total > 0, 2 * right / np.maximum(total, 1), 1.0)
