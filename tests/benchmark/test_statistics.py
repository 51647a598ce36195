"""Statistics against scipy, literal definitions, and simulations whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate
from benchmark.rows import standard_error
from benchmark.statistics.difference import (
    Difference,
    Scores,
    difference,
    holm,
    separable_groups,
    smallest_difference,
)
from benchmark.statistics.ranking import draw_means, iqm, rank, standings
from benchmark.statistics.resampling import MatchedSplit, draw_images, mean_ap


def scores(per_image: np.ndarray, draws: np.ndarray) -> Scores:
    """A row whose number is a plain mean over images of (seeds, images) values: its truth is known."""
    return Scores(per_image.mean(axis=1), draws @ per_image.T / per_image.shape[1])


def constant(points: list[float], draws: int = 200) -> Scores:
    """A row on which images make no difference."""
    return Scores(np.array(points), np.tile(points, (draws, 1)))


def found(a: Scores, b: Scores, images: int) -> Difference:
    result = difference(a, b, images)
    assert result is not None
    return result


def simulate(
    rng: np.random.Generator,
    seeds: int,
    images: int,
    shift: float = 0.0,
    spread: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> list[np.ndarray]:
    """Two rows of (seeds, images) values: image effects (part of them common), seed effects, and their luck.

    Args:
        shift: The true difference.
        spread: Standard deviations: of an image's effect, of a seed's times root(images), of one seed on one image.
    """
    of_image, of_seed, luck = spread
    common = rng.normal(0, 2 * of_image, images)
    return [
        mean
        + common
        + rng.normal(0, of_image, images)
        + rng.normal(0, of_seed / np.sqrt(images), (seeds, 1))
        + rng.normal(0, luck, (seeds, images))
        for mean in (shift, 0.0)
    ]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_the_standard_error_of_a_row_is_scipys(values: list[float]) -> None:
    assert standard_error(values) == pytest.approx(stats.sem(values), rel=1e-9, abs=1e-12)
    assert standard_error(values[:1]) is None


def test_without_an_effect_of_images_it_is_welchs_t_test() -> None:
    a, b = [71.0, 74.5, 73.2], [70.1, 69.0, 71.5, 70.4]
    mine = found(constant(a), constant(b), images=50)
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert mine.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval()
    assert [mine.low, mine.high] == pytest.approx([low, high], rel=1e-9)
    assert mine.degrees == pytest.approx(expected.df, rel=1e-9)


def test_with_one_seed_it_is_the_paired_t_test_over_images() -> None:
    rng = np.random.default_rng(0)
    a, b = simulate(rng, seeds=1, images=200, shift=0.3)
    draws = draw_images(200, 20_000)
    mine = found(scores(a, draws), scores(b, draws), images=200)
    expected = stats.ttest_rel(a[0], b[0])
    low, high = expected.confidence_interval()
    assert mine.seed_error is None
    assert [mine.low, mine.high] == pytest.approx([low, high], rel=0.02)
    assert mine.degrees == pytest.approx(199, rel=1e-9)
    # Unpaired, the same numbers say far less.
    assert mine.error < 0.7 * np.sqrt((a.var() + b.var()) / 200)


def test_equal_rows_do_not_differ() -> None:
    same = constant([70.0, 70.0])
    mine = found(same, same, images=10)
    assert (mine.value, mine.low, mine.high, mine.p, mine.smallest) == (0, 0, 0, 1, 0)


def test_a_number_that_few_draws_define_is_not_compared() -> None:
    broken = np.full((200, 1), np.nan)
    broken[:50] = 1.0
    assert difference(Scores(np.ones(1), broken), constant([1.0]), images=20) is None


def _covered(seeds: int, spread: tuple[float, float, float], experiments: int = 1000) -> float:
    rng = np.random.default_rng(7)
    images, inside = 60, 0
    draws = draw_images(images, 500)
    for _ in range(experiments):
        a, b = (scores(values, draws) for values in simulate(rng, seeds, images, 0.4, spread))
        mine = found(a, b, images)
        inside += mine.low <= 0.4 <= mine.high
    return inside / experiments


def test_95_percent_intervals_hold_the_truth_in_95_percent_of_1000_experiments() -> None:
    assert 0.93 <= _covered(seeds=3, spread=(1.0, 1.0, 0.5)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "spread"),
    [
        (3, (1.0, 2.0, 1.0)),
        (5, (1.0, 1.0, 1.0)),
        (3, (1.0, 0.3, 0.3)),
        (2, (1.0, 0.7, 0.5)),
        (3, (0.3, 2.0, 0.3)),
    ],
)
def test_coverage_holds_where_images_or_seeds_dominate(
    seeds: int, spread: tuple[float, float, float]
) -> None:
    assert 0.93 <= _covered(seeds, spread) <= 0.97


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_definition(values: list[float]) -> None:
    adjusted = holm(values)
    for level in (0.01, 0.05, 0.2):
        rejected: set[int] = set()
        # Literally: from the smallest on, reject while p <= level / (number not yet rejected).
        for step, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if values[index] * (len(values) - step) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_holm_keeps_false_calls_of_a_family_below_5_percent() -> None:
    rng = np.random.default_rng(3)
    p = 2 * stats.norm.sf(np.abs(rng.normal(0, 1, (4000, 22))))
    assert np.mean([(holm(row) < 0.05).any() for row in p]) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize("degrees", [2.0, 4.0, 30.0, 1e6])
def test_the_smallest_difference_is_found_in_80_percent(degrees: float) -> None:
    smallest = smallest_difference(1.5, degrees)
    assert smallest is not None
    rng = np.random.default_rng(1)
    errors = 1.5 * np.sqrt(rng.chisquare(degrees, 40_000) / degrees)
    t = (smallest + 1.5 * rng.normal(size=40_000)) / errors
    assert np.mean(np.abs(t) > stats.t.ppf(0.975, degrees)) == pytest.approx(0.8, abs=0.01)


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] < pair[1])))
def test_rows_share_a_group_exactly_when_they_are_inseparable(pairs: set[tuple[int, int]]) -> None:
    names = list("abcdef")
    groups = separable_groups(names, [(names[i], names[j]) for i, j in pairs])
    together = {pair for group in groups for pair in itertools.combinations(group, 2)}
    assert together == {(names[i], names[j]) for i, j in pairs}
    assert {name for group in groups for name in group} == set(names)
    assert not any(set(one) < set(other) for one in groups for other in groups)


def test_iqm_and_rank_are_the_definitions() -> None:
    values = np.array([[10.0, 60.0, 70.0, 95.0], [20.0, 50.0, 70.0, 99.0]])
    assert iqm(values).tolist() == [65.0, 60.0]
    assert rank(values).tolist() == [(2 + 1 + 1.5 + 2) / 4, (1 + 2 + 1.5 + 1) / 4]


def test_drawn_means_vary_as_means_of_new_experiments_do() -> None:
    rng = np.random.default_rng(5)
    draws = draw_images(80, 4000)
    variances = []
    for _ in range(60):
        row = scores(simulate(rng, 6, 80)[0], draws)
        # A t variable of five degrees varies 5/3 as much as a normal one; the median is free of that.
        low, high = np.quantile(draw_means(row, 80, rng), [0.25, 0.75])
        variances.append(((high - low) / 1.349) ** 2)
    truth = (4 + 1) / 80 + 1 / 80 / 6 + 1 / 80 / 6
    assert np.mean(variances) == pytest.approx(truth, rel=0.1)


def test_a_clearly_better_row_ranks_first_and_equal_rows_share_their_intervals() -> None:
    rng = np.random.default_rng(2)
    rows: list[list[Scores]] = [[], [], []]
    for _ in range(4):
        draws = draw_images(100, 500)
        a, b = simulate(rng, 3, 100)
        for row, values in zip(rows, (a + 5, b, b + rng.normal(0, 0.1, b.shape)), strict=True):
            row.append(scores(values, draws))
    first, second, third = standings(rows, [100] * 4)
    assert (first.rank, first.rank_interval) == (1, (1, 1))
    assert first.iqm_interval[0] > second.iqm_interval[1]
    assert second.rank_interval[0] < third.rank_interval[1]
    assert third.rank_interval[0] < second.rank_interval[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "spread"), [(1, (1.0, 0.0, 1.0)), (3, (1.0, 1.0, 0.5)), (5, (1.0, 1.0, 1.0))]
)
def test_intervals_over_datasets_hold_the_truth_in_95_percent_of_1000_experiments(
    seeds: int, spread: tuple[float, float, float]
) -> None:
    """Four datasets of 60 images; one row is better on each of them, so that its true rank is 1."""
    rng = np.random.default_rng(4)
    draws = draw_images(60, 400)
    levels, experiments = (0.0, 1.0, 2.0, 7.0), 1000
    truth = np.mean(levels[1:3])
    middle = first = 0
    for _ in range(experiments):
        rows: list[list[Scores]] = [[], []]
        for level in levels:
            for row, values in zip(rows, simulate(rng, seeds, 60, 0.4, spread), strict=True):
                row.append(scores(values + level, draws))
        better, other = standings(rows, [60] * len(levels))
        middle += other.iqm_interval[0] <= truth <= other.iqm_interval[1]
        first += better.rank_interval[0] <= 1
    assert 0.93 <= middle / experiments <= 0.98
    assert first / experiments >= 0.95


def _answers(rng: np.random.Generator, images: int) -> tuple[GroundTruth, Detections, Detections]:
    """Two detectors on new images: objects that are hard for one are hard for the other, A finds more of them."""
    ids = [f"{i:05d}" for i in range(images)]
    counts = rng.integers(0, 5, images)
    counts[0] = 2
    hard = [rng.normal(0, 1, count) for count in counts]
    boxes = [np.stack([[100 * k, 0, 50, 50] for k in range(5)])[:count] for count in counts]
    labels = [np.zeros(count, int) for count in counts]
    truth = GroundTruth.from_images(["pit"], ids, np.full((images, 2), 600), boxes, labels)
    both = []
    for skill in (0.9, 0.5):
        corners, scores = [], []
        for i in range(images):
            seen = hard[i] + rng.normal(0, 0.7, counts[i]) < skill
            right = boxes[i][seen] + rng.uniform(0, 12, (seen.sum(), 1)) * [1, 0, 0, 0]
            wrong = np.stack([[100 * k, 200, 50, 50] for k in range(5)])[: rng.poisson(0.7)]
            found = np.concatenate([right, wrong])
            corners.append(found + np.concatenate([np.zeros_like(found[:, :2]), found[:, :2]], axis=1))
            strength = np.concatenate([rng.normal(1, 1, len(right)), rng.normal(0, 1, len(wrong))])
            scores.append(1 / (1 + np.exp(-strength)))
        kinds = [np.zeros(len(part), int) for part in scores]
        both.append(Detections.from_images(["pit"], ids, corners, scores, kinds))
    return truth, both[0], both[1]


def _map50(truth: GroundTruth, detections: Detections, draws: np.ndarray) -> Scores:
    weights = np.concatenate([np.ones((1, draws.shape[1]), draws.dtype), draws])
    values = mean_ap(MatchedSplit.of(truth, detections).average_precision(weights))[:, :1]
    return Scores(values[0], values[1:])


@pytest.mark.slow
def test_the_interval_of_a_difference_of_map_holds_the_populations() -> None:
    rng = np.random.default_rng(11)
    population, *both = _answers(rng, 20_000)
    truth = evaluate(population, both[0]).map50 - evaluate(population, both[1]).map50
    images, experiments, inside = 100, 300, 0
    draws = draw_images(images, 200)
    for _ in range(experiments):
        sample, a, b = _answers(rng, images)
        mine = found(_map50(sample, a, draws), _map50(sample, b, draws), images)
        inside += mine.low <= truth <= mine.high
    # 300 experiments know a coverage of 95 % to 1.3 points.
    assert 0.92 <= inside / experiments <= 0.98
