"""Rows over several datasets: the mean of the middle half, and ranks, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmark.statistics.difference import LEVEL, Scores, seed_variance


@dataclass(frozen=True)
class Standing:
    """Where a row stands over the datasets.

    Attributes:
        iqm: Interquartile mean of its datasets' means: the mean of the middle half of the datasets.
        iqm_interval: 95 %.
        rank: Mean over the datasets of its rank among the rows; 1 is best.
        rank_interval: 95 %.
    """

    iqm: float
    iqm_interval: tuple[float, float]
    rank: float
    rank_interval: tuple[float, float]


def draw_means(row: Scores, images: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws what a row's mean could have been with other images and other seeds.

    Images come from the bootstrap, whose draws rows on one split share; the part of the seeds is drawn from a t
    distribution, since drawing two or three seeds with replacement gives intervals that are too short.

    Args:
        row: Of any number of seeds; with one, the part of the seeds is unknown and missing.
        images: How many images a draw has.
        rng: For the part of the seeds.

    Returns:
        (draws,).
    """
    drawn = row.resampled.mean(axis=1)
    drawn = np.where(np.isfinite(drawn), drawn, np.nanmean(drawn))
    means = row.mean + (drawn - drawn.mean()) * math.sqrt(images / (images - 1))
    seeds = len(row.points)
    if seeds > 1:
        means = means + math.sqrt(seed_variance(row, images)) * rng.standard_t(seeds - 1, len(means))
    return means


def standings(rows: Sequence[Sequence[Scores]], images: Sequence[int], seed: int = 0) -> list[Standing]:
    """Compares rows over datasets.

    Args:
        rows: For each row its scores on each dataset, all rows on the same datasets.
        images: Images of each dataset's split.
        seed: Of the drawing.

    Returns:
        One entry a row.
    """
    rng = np.random.default_rng(seed)
    draws = np.array(
        [[draw_means(scores, images[d], rng) for d, scores in enumerate(row)] for row in rows]
    )  # (rows, datasets, draws)
    points = np.array([[scores.mean for scores in row] for row in rows])
    iqms, ranks = iqm(draws), rank(draws)
    return [
        Standing(float(iqm(points)[r]), _interval(iqms[r]), float(rank(points)[r]), _interval(ranks[r]))
        for r in range(len(rows))
    ]


def iqm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean of the middle half along the second axis: (rows, datasets, ...) to (rows, ...)."""
    return stats.trim_mean(values, 0.25, axis=1)


def rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean rank over datasets, 1 the highest value: (rows, datasets, ...) to (rows, ...)."""
    return stats.rankdata(-values, axis=0).mean(axis=1)


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
