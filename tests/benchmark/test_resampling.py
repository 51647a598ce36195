"""Resampled mAP against pycocotools on splits whose images really stand there more than once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate, evaluate_reference
from benchmark.statistics.resampling import MatchedSplit, draw_images, mean_ap

CLASSES = ("scratch", "inclusion", "pit")
Parts = list[tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray]]


def random_parts(seed: int, images: int, crowd: bool, ties: bool = False) -> Parts:
    """Images as (boxes, labels, crowd, answer corners, scores, answer labels); some answers lie near an object."""
    rng = np.random.default_rng(seed)
    parts = []
    pool = rng.permutation(images * 12 + 1) / (images * 12 + 1)  # no score twice
    for i in range(images):
        count, answers = int(rng.integers(0, 4)) + (i == 0), int(rng.integers(0, 12))
        boxes = np.concatenate([rng.uniform(0, 80, (count, 2)), rng.uniform(8, 40, (count, 2))], axis=1)
        labels = rng.integers(0, len(CLASSES), count)
        flags = (rng.random(count) < 0.3) & crowd
        flags[:1] &= i > 0
        corners = np.concatenate([rng.uniform(0, 80, (answers, 2)), rng.uniform(8, 40, (answers, 2))], axis=1)
        guesses = rng.integers(0, len(CLASSES), answers)
        near = np.flatnonzero(rng.random(answers) < 0.7) if count else np.zeros(0, int)
        source = rng.integers(0, max(count, 1), len(near))
        corners[near] = np.abs(boxes[source] + rng.normal(0, 3, (len(near), 4)))
        guesses[near] = labels[source]
        corners[:, 2:] += corners[:, :2]
        scores = np.round(rng.random(answers), 1) if ties else pool[i * 12 : i * 12 + answers]
        parts.append((boxes, labels, flags, corners, scores, guesses))
    return parts


def split_of(parts: Parts, names: list[str]) -> tuple[GroundTruth, Detections]:
    boxes, labels, crowd, corners, scores, guesses = zip(*parts, strict=True)
    truth = GroundTruth.from_images(
        CLASSES, names, np.full((len(names), 2), 200), list(boxes), list(labels), list(crowd)
    )
    return truth, Detections.from_images(CLASSES, names, list(corners), list(scores), list(guesses))


def repeated(parts: Parts, weights: NDArray) -> tuple[GroundTruth, Detections]:
    """Images stand as often as their weight, copies side by side under names of their own."""
    chosen = [(i, copy) for i, weight in enumerate(weights) for copy in range(weight)]
    return split_of([parts[i] for i, _ in chosen], [f"{i:03d}-{copy:02d}" for i, copy in chosen])


def names_of(parts: Parts) -> list[str]:
    return [f"{i:03d}" for i in range(len(parts))]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.booleans())
def test_a_resample_is_what_pycocotools_says_of_the_repeated_images(
    seed: int, images: int, crowd: bool
) -> None:
    parts = random_parts(seed, images, crowd)
    matched = MatchedSplit.of(*split_of(parts, names_of(parts)))
    weights = draw_images(images, resamples=2, seed=seed)
    weights[:, 0] += 1  # an image with an object is there
    values = matched.average_precision(weights)
    for draw, mine, both in zip(weights, values, mean_ap(values), strict=True):
        expected = evaluate_reference(*repeated(parts, draw))
        assert both == pytest.approx([expected.map50, expected.map50_95], abs=1e-9)
        for entry, (ap50, ap) in zip(expected.per_class, mine.tolist(), strict=True):
            if entry.ap50 is None:
                assert np.isnan([ap50, ap]).all()
            else:
                assert [ap50, ap] == pytest.approx([entry.ap50, entry.ap50_95], abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_split_as_it_is_has_the_evaluators_map_even_with_equal_scores(seed: int) -> None:
    parts = random_parts(seed, 30, crowd=True, ties=True)
    truth, detections = split_of(parts, names_of(parts))
    values = MatchedSplit.of(truth, detections).average_precision(np.ones((1, 30), int))
    metrics = evaluate(truth, detections)
    assert mean_ap(values)[0] == pytest.approx([metrics.map50, metrics.map50_95], abs=1e-9)


def test_chunks_do_not_change_a_number(monkeypatch) -> None:
    parts = random_parts(1, 20, crowd=False)
    matched = MatchedSplit.of(*split_of(parts, names_of(parts)))
    weights = draw_images(20, 50)
    whole = matched.average_precision(weights)
    monkeypatch.setattr("benchmark.statistics.resampling._CHUNK", 1)
    np.testing.assert_array_equal(matched.average_precision(weights), whole)


def test_without_any_detection_everything_is_zero_and_without_objects_undefined() -> None:
    parts = [
        (*part[:3], np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)) for part in random_parts(3, 6, False)
    ]
    matched = MatchedSplit.of(*split_of(parts, names_of(parts)))
    values = mean_ap(matched.average_precision(np.stack([np.ones(6, int), np.zeros(6, int)])))
    assert values[0].tolist() == [0, 0]
    assert np.isnan(values[1]).all()


def test_draws_are_of_full_size_and_equal_for_all_rows_of_a_split() -> None:
    draws = draw_images(40, 200)
    assert draws.shape == (200, 40)
    assert (draws.sum(axis=1) == 40).all()
    np.testing.assert_array_equal(draws, draw_images(40, 200))
    # Each image is drawn once on average, with the variance of a binomial count.
    assert draws.var() == pytest.approx(1 - 1 / 40, rel=0.05)
