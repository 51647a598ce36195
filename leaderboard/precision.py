"""Precision over recall of a row, from its stored detections: the curve whose area is its AP@.5."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

import datasets_builders
from benchmark.evaluate import GroundTruth, match
from benchmark.records import Detections
from benchmark.rows import Row
from benchmark.verify import check_fingerprint

RECALLS = np.linspace(0.0, 1.0, 101)
"""COCO's recall levels."""


def curves(row: Row) -> dict[str, NDArray[np.float64]]:
    """Computes a row's precision at each of `RECALLS`, at IoU 0.5, mean over its seeds.

    Returns:
        By class name, (101,) in 0..1; classes without objects are left out. The mean of a curve is the class's AP@.5
        / 100.

    Raises:
        UserError: The dataset or detections are missing, damaged, or of another version than the records'.
    """
    dataset = row.records[0].record.dataset
    check_fingerprint(dataset)
    truth = GroundTruth.from_dataset(datasets_builders.load(dataset.name, "validation"))
    seeds = []
    for stored in row.records:
        detections = Detections.load(stored.path.parent / stored.record.detections_files[0])
        seeds.append(_of_detections(truth, detections))
    return {name: np.mean([found[name] for found in seeds], axis=0) for name in seeds[0]}


def _of_detections(truth: GroundTruth, detections: Detections) -> dict[str, NDArray[np.float64]]:
    by_class = defaultdict(list)
    for entry in match(truth, detections):
        by_class[entry["category_id"] - 1].append(entry)
    found = {}
    for number, name in enumerate(truth.classes):
        entries = by_class[number]
        objects = sum(int((~np.asarray(entry["gtIgnore"], bool)).sum()) for entry in entries)
        if not objects:
            continue
        scores = np.concatenate([np.asarray(entry["dtScores"], np.float64) for entry in entries])
        right = np.concatenate([np.asarray(entry["dtMatches"]).reshape(10, -1)[0] > 0 for entry in entries])
        counted = np.concatenate(
            [~np.asarray(entry["dtIgnore"], bool).reshape(10, -1)[0] for entry in entries]
        )
        order = np.argsort(-scores, kind="stable")
        order = order[counted[order]]
        found[name] = _interpolated(right[order], objects)
    return found


def _interpolated(right: NDArray[np.bool_], objects: int) -> NDArray[np.float64]:
    """Returns, at each of `RECALLS`, the best precision that is reached at that recall or a higher one."""
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(found / objects, RECALLS, side="left")
    return np.append(best, 0.0)[np.minimum(places, len(best))]
