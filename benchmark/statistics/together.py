"""One difference over several datasets: its mean with an interval, and what exchanging seeds would have given."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmark.statistics.difference import LEVEL, Difference, Scores

_MOST = 1_000_000
"""Exchanges that are counted out; of more, `_DRAWS` are drawn."""
_DRAWS = 100_000


def mean_difference(found: Sequence[Difference]) -> Difference:
    """Returns the mean over datasets of one row's difference to another.

    Datasets share neither images nor seeds, so the variances add up; the degrees of freedom are Satterthwaite's.
    The interval speaks of these datasets: they are not a draw of any others.

    Args:
        found: One entry a dataset, at least one.
    """
    number = len(found)
    value = sum(entry.value for entry in found) / number
    variances = [entry.error**2 for entry in found]
    error = math.sqrt(sum(variances)) / number
    squares = sum(v**2 / entry.degrees for v, entry in zip(variances, found, strict=True))
    degrees = sum(variances) ** 2 / squares if squares > 0 else min(entry.degrees for entry in found)
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * error
    seeds = [entry.seed_error for entry in found]
    return Difference(
        value=value,
        error=error,
        degrees=degrees,
        low=value - half,
        high=value + half,
        p=float(2 * stats.t.sf(abs(value) / error, degrees)) if error > 0 else float(value == 0),
        image_error=math.sqrt(sum(entry.image_error**2 for entry in found)) / number,
        seed_error=None
        if any(one is None for one in seeds)
        else math.sqrt(sum(one**2 for one in seeds if one is not None)) / number,
    )


def exchange_p(pairs: Sequence[tuple[Scores, Scores]], seed: int = 0) -> float:
    """Tests whether seeds of two rows could be exchanged within every dataset (stratified permutation test).

    If a row's name said nothing, each dataset's trainings could have been dealt to the two rows in any other way just
    as well. The p-value is the share of those ways whose mean difference over the datasets is as large as the one
    found, of either sign: exact, without an assumption about how trainings scatter. It speaks of these images.

    Args:
        pairs: Rows A and B on each dataset.
        seed: Of the ways that are drawn, where there are more than a million.

    Returns:
        The p-value, never smaller than one over the number of ways.
    """
    observed = sum(a.mean - b.mean for a, b in pairs)
    ways = math.prod(math.comb(len(a.points) + len(b.points), len(a.points)) for a, b in pairs)
    if ways <= _MOST:
        sums = functools.reduce(np.add.outer, [_all_ways(a, b) for a, b in pairs]).ravel()
        return float(np.mean(_as_large(sums, observed)))
    rng = np.random.default_rng(seed)
    sums = np.sum([_some_ways(a, b, rng) for a, b in pairs], axis=0)
    return float((1 + np.count_nonzero(_as_large(sums, observed))) / (1 + _DRAWS))


def _as_large(sums: NDArray[np.float64], observed: float) -> NDArray[np.bool_]:
    return np.abs(sums) >= abs(observed) - 1e-9


def _all_ways(a: Scores, b: Scores) -> NDArray[np.float64]:
    values = np.concatenate([a.points, b.points])
    chosen = np.array(list(itertools.combinations(range(len(values)), len(a.points))))
    of_a = values[chosen].sum(axis=1)
    return of_a / len(a.points) - (values.sum() - of_a) / len(b.points)


def _some_ways(a: Scores, b: Scores, rng: np.random.Generator) -> NDArray[np.float64]:
    values = np.concatenate([a.points, b.points])
    dealt = rng.permuted(np.tile(values, (_DRAWS, 1)), axis=1)
    return dealt[:, : len(a.points)].mean(axis=1) - dealt[:, len(a.points) :].mean(axis=1)
