"""Matching of detections with objects, against a literal version of COCO's rule."""

from __future__ import annotations

import numpy as np
import pytest

from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth
from benchmark.matching import Matching, f1_of_images, match_all

CLASSES = ["a", "b"]


def split(seed: int) -> tuple[GroundTruth, Detections]:
    """A random split of four images whose detections lie near objects, some on crowd regions."""
    rng = np.random.default_rng(seed)
    boxes, labels, crowd, found, scores, kinds = [], [], [], [], [], []
    for _ in range(4):
        count = int(rng.integers(0, 5))
        start = rng.uniform(0, 60, (count, 2))
        size = rng.uniform(8, 30, (count, 2))
        boxes.append(np.hstack([start, size]))
        labels.append(rng.integers(0, 2, count))
        crowd.append(rng.random(count) < 0.2)
        picked = rng.integers(0, max(count, 1), int(rng.integers(0, 8)) if count else 0)
        corners = np.hstack([start, start + size])[picked] + rng.normal(0, 4, (len(picked), 4))
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])
        found.append(corners)
        scores.append(rng.integers(0, 10, len(picked)) / 10)  # with equal scores
        kinds.append(np.where(rng.random(len(picked)) < 0.8, labels[-1][picked] if count else 0, 0))
    boxes[0], labels[0], crowd[0] = np.array([[5.0, 5, 20, 20]]), np.array([0]), np.array([False])
    ids = ["w", "x", "y", "z"]
    return (
        GroundTruth.from_images(CLASSES, ids, [(100, 100)] * 4, boxes, labels, crowd),
        Detections.from_images(CLASSES, ids, found, scores, kinds),
    )


def overlap(a: np.ndarray, b: np.ndarray, crowd: bool) -> float:
    """Intersection over union of corners; over the detection's area where the object is a crowd region."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (sides <= 0).any():
        return 0.0
    area, other = np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])
    shared = float(np.prod(sides))
    return shared / (area if crowd else area + other - shared)


def literal(truth: GroundTruth, detections: Detections) -> Matching:
    found = np.full(len(detections), -1)
    judged = np.ones(len(detections), bool)
    finder = np.full(len(truth.labels), -1)
    for place in range(len(truth.image_ids)):
        rows = range(detections.offsets[place], detections.offsets[place + 1])
        objects = range(truth.offsets[place], truth.offsets[place + 1])
        for row in sorted(rows, key=lambda k: -detections.scores[k]):
            best, chosen = 0.5, -1
            # Objects first; a crowd region only takes what no object takes, and any number of detections.
            for kind in (False, True):
                if chosen >= 0:
                    break
                for k in objects:
                    if truth.labels[k] != detections.labels[row] or truth.crowd[k] != kind:
                        continue
                    if finder[k] >= 0 and not kind:
                        continue
                    box = truth.boxes[k]
                    corners = np.concatenate([box[:2], box[:2].astype(np.float64) + box[2:]])
                    value = overlap(detections.boxes[row], corners, kind)
                    if value >= best:
                        best, chosen = value, k
            if chosen >= 0:
                found[row] = chosen
                judged[row] = not truth.crowd[chosen]
                if not truth.crowd[chosen]:
                    finder[chosen] = row
    return Matching(detections.scores, found, judged, finder, ~truth.crowd)


@pytest.mark.parametrize("seed", range(25))
def test_matching_follows_cocos_rule(seed: int) -> None:
    truth, detections = split(seed)
    ours, wanted = match_all(truth, detections), literal(truth, detections)
    for name in ("judged", "counts", "finder"):
        assert getattr(ours, name).tolist() == getattr(wanted, name).tolist(), name
    assert ours.found[ours.judged].tolist() == wanted.found[wanted.judged].tolist()


@pytest.mark.parametrize("seed", range(10))
def test_a_threshold_is_as_if_lower_detections_were_not_there(seed: int) -> None:
    truth, detections = split(seed)
    whole = match_all(truth, detections)
    for threshold in (0.0, 0.3, 0.75, 1.0):
        rows = [detections.of_image(place) for place in range(4)]
        kept = [row.scores >= threshold for row in rows]
        columns = [[getattr(r, name)[k] for r, k in zip(rows, kept, strict=True)] for name in r_names]
        alone = match_all(truth, Detections.from_images(CLASSES, detections.image_ids, *columns))
        assert whole.right(threshold).sum() == alone.right(0).sum()
        assert whole.wrong(threshold).sum() == alone.wrong(0).sum()
        assert whole.missed(threshold).tolist() == alone.missed(0).tolist()


r_names = ("boxes", "scores", "labels")


@pytest.mark.parametrize("seed", range(10))
def test_the_best_threshold_has_the_highest_f1(seed: int) -> None:
    matching = match_all(*split(seed))

    def f1(threshold: float) -> float:
        right, wrong, missed = (
            int(chosen(threshold).sum()) for chosen in (matching.right, matching.wrong, matching.missed)
        )
        return 2 * right / (2 * right + wrong + missed)

    best = matching.best_threshold()
    values = {float(score): f1(float(score)) for score in matching.scores[matching.judged]}
    assert f1(best) == max(values.values(), default=0)
    assert best == max((s for s, value in values.items() if value == f1(best)), default=0.0)


def test_f1_of_images_counts_what_is_in_each() -> None:
    truth = GroundTruth.from_images(
        CLASSES,
        ["a", "b", "c"],
        [(9, 9)] * 3,
        [[[0, 0, 4, 4], [5, 5, 4, 4]], [[0, 0, 4, 4]], []],
        [[0, 1], [0], []],
    )
    detections = Detections.from_images(
        CLASSES,
        ["a", "b", "c"],
        [[[0, 0, 4, 4], [0, 0, 4, 4]], [[5, 5, 9, 9]], []],
        [[0.9, 0.8], [0.7], []],
        [[0, 0], [0], []],
    )
    matching = match_all(truth, detections)
    of_object = np.array([0, 0, 1])
    values = f1_of_images(matching, 0.5, detections.image_index, of_object, 3)
    assert values.tolist() == [2 / 4, 0.0, 1.0]  # TP 1, FP 1, FN 1; FP 1, FN 1; nothing
    assert f1_of_images(matching, 0.85, detections.image_index, of_object, 3).tolist() == [2 / 3, 0.0, 1.0]
