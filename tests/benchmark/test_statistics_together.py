"""A difference over several datasets against scipy, brute force, and simulations with known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from benchmark.statistics import together as module
from benchmark.statistics.difference import Difference, Scores, difference
from benchmark.statistics.together import exchange_p, mean_difference


def scores(points: ArrayLike) -> Scores:
    """Of a detector on which images change nothing."""
    values = np.asarray(points, dtype=float)
    return Scores(values, np.tile(values.mean(), (100, len(values))))


def compared(a: ArrayLike, b: ArrayLike) -> Difference:
    found = difference(scores(a), scores(b), images=1000)
    assert found is not None
    return found


def test_one_dataset_is_the_difference_itself() -> None:
    found = compared([3.0, 5.0, 4.5], [1.0, 2.5])
    joined = mean_difference([found])
    for name in ("value", "error", "degrees", "low", "high", "p", "seed_error"):
        assert getattr(joined, name) == pytest.approx(getattr(found, name)), name


def test_equal_scatter_everywhere_is_students_t_with_all_degrees_of_freedom() -> None:
    shift = np.array([-1.0, 0.0, 1.0])
    joined = mean_difference([compared(shift + a, shift) for a in (1.0, 2.0, 3.0)])
    error = np.sqrt(2 / 3) / np.sqrt(3)
    assert joined.value == pytest.approx(2.0)
    assert joined.error == pytest.approx(error)
    assert joined.degrees == pytest.approx(12)
    assert joined.p == pytest.approx(2 * stats.t.sf(2.0 / error, 12))
    assert joined.high - joined.value == pytest.approx(stats.t.ppf(0.975, 12) * error)


def test_the_interval_holds_the_truth() -> None:
    """Three datasets of quite different scatter, three seeds."""
    rng = np.random.default_rng(0)
    truth, scatter = np.array([2.0, 5.0, -1.0]), np.array([0.5, 2.0, 6.0])
    held = 0
    for _ in range(1000):
        pairs = zip(truth, scatter, strict=True)
        joined = mean_difference([compared(rng.normal(t, s, 3), rng.normal(0, s, 3)) for t, s in pairs])
        held += joined.low <= truth.mean() <= joined.high
    assert 930 <= held <= 980


def test_exchanges_on_one_dataset_are_scipys_permutation_test() -> None:
    rng = np.random.default_rng(1)
    for shift in (0.0, 1.0, 3.0):
        a, b = rng.normal(shift, 1, 4), rng.normal(0, 1, 3)
        expected = stats.permutation_test(
            (a, b),
            lambda x, y, axis: np.abs(x.mean(axis) - y.mean(axis)),
            vectorized=True,
            alternative="greater",
        )
        assert exchange_p([(scores(a), scores(b))]) == pytest.approx(expected.pvalue)


def test_exchanges_on_two_datasets_are_counted_by_brute_force() -> None:
    rng = np.random.default_rng(2)
    pairs = [(rng.normal(1, 1, 3), rng.normal(0, 1, 2)), (rng.normal(1, 2, 2), rng.normal(0, 2, 2))]
    observed = abs(sum(a.mean() - b.mean() for a, b in pairs))
    ways: list[list[float]] = []
    for a, b in pairs:
        pool = [*a, *b]
        ways.append([])
        for chosen in itertools.combinations(range(len(pool)), len(a)):
            left = [pool[i] for i in range(len(pool)) if i not in chosen]
            ways[-1].append(float(np.mean([pool[i] for i in chosen]) - np.mean(left)))
    large = [abs(one + other) >= observed - 1e-9 for one in ways[0] for other in ways[1]]
    assert len(large) == 60
    assert exchange_p([(scores(a), scores(b)) for a, b in pairs]) == pytest.approx(np.mean(large))


def test_drawn_exchanges_are_near_the_counted_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pairs = [(scores(rng.normal(0.8, 1, 3)), scores(rng.normal(0, 1, 3))) for _ in range(3)]
    counted = exchange_p(pairs)
    monkeypatch.setattr(module, "_MOST", 1)
    assert exchange_p(pairs) == pytest.approx(counted, abs=0.005)
    assert exchange_p(pairs) == exchange_p(pairs)


def test_equal_rows_are_called_different_no_more_often_than_the_level() -> None:
    rng = np.random.default_rng(4)
    p = [
        exchange_p([(scores(rng.exponential(size=3)), scores(rng.exponential(size=3))) for _ in range(3)])
        for _ in range(1000)
    ]
    assert np.mean(np.asarray(p) <= 0.05) == pytest.approx(0.05, abs=0.02)
