"""Mask IoU and box recall against counting pixel by pixel and box by box."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_boxes import literal_iou
from made_maps import map_row

from agssp.map_quality import box_ious, box_recall, mask_ious, study_thresholds
from agssp.upsampling import upsample
from datasets_builders.errors import UserError

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(seeds, st.floats(0, 1), st.lists(st.floats(-0.2, 1.2), min_size=1, max_size=6))
def test_mask_iou_is_that_of_sets_of_pixels(seed: int, share: float, thresholds: list[float]) -> None:
    rng = np.random.default_rng(seed)
    values = np.round(rng.random((3, 4), dtype=np.float32) * 4) / 4
    truth = rng.random((11, 13)) < share
    pixels = upsample(values, (13, 11))
    true_pixels = set(zip(*np.nonzero(truth), strict=True))
    for threshold, found in zip(thresholds, mask_ious(values, truth, thresholds), strict=True):
        own = set(zip(*np.nonzero(pixels > np.float32(threshold)), strict=True))
        if own | true_pixels:
            assert found == len(own & true_pixels) / len(own | true_pixels)
        else:
            assert math.isnan(found)


def test_a_study_averages_over_images_with_defects() -> None:
    left = np.zeros((8, 8), bool)
    left[:, :4] = True
    rows = [
        # Low and high levels: each category needs another threshold; no fixed one serves both.
        (map_row("a", np.where(left, 0.5, 0.25), (8, 8), "dim"), left),
        (map_row("b", np.where(left, 1.5, 1.0), (8, 8), "bright"), left),
        (map_row("c", np.full((8, 8), 1.0), (8, 8), "bright"), np.zeros((8, 8), bool)),
    ]
    study = study_thresholds(iter(rows), {"dim": 0.375, "bright": 1.25}, [0.375, 1.25, 9.0])
    assert (study.images, study.adaptive) == (2, 1.0)
    assert study.fixed == {0.375: 0.75, 1.25: 0.5, 9.0: 0.0}
    assert study.best_fixed == 0.375


def test_studies_that_mean_nothing_are_refused() -> None:
    row, empty = map_row("a", np.ones((2, 2)), (4, 4)), np.zeros((4, 4), bool)
    with pytest.raises(UserError, match="None of the images has a defect"):
        study_thresholds([(row, empty)], {"plate": 1.0}, [0.5])
    with pytest.raises(UserError, match="'plate' has no threshold"):
        study_thresholds([(row, ~empty)], {}, [0.5])
    with pytest.raises(UserError, match="at least one"):
        study_thresholds([(row, ~empty)], {"plate": 1.0}, [])


boxes = st.lists(st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2), max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(boxes, boxes), max_size=4), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_recall_counts_true_boxes_that_are_met(
    images: list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]], iou: float
) -> None:
    met = [any(literal_iou(a, b) >= iou for a in found) for found, truth in images for b in truth]
    recall = box_recall(images, iou)
    assert recall == sum(met) / len(met) if met else math.isnan(recall)
    for found, truth in images:
        wanted = [[literal_iou(a, b) for b in truth] for a in found]
        np.testing.assert_allclose(
            box_ious(found, truth), np.reshape(wanted, (len(found), len(truth))), rtol=1e-12
        )


def test_boxes_without_area_meet_nothing() -> None:
    assert box_ious([[3, 3, 0, 0]], [[3, 3, 0, 0], [0, 0, 9, 9]]).tolist() == [[0, 0]]
