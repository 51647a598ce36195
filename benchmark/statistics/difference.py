"""The difference of two rows: how large, how sure, and how small a difference could be seen at all."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

LEVEL = 0.05
"""Of every test; intervals hold the other 95 %."""
POWER = 0.8
"""Probability with which a difference counts as one that would be found."""
_LEAST_DRAWS = 100

T = TypeVar("T", str, int)


@dataclass(frozen=True, eq=False)
class Scores:
    """One number of a row, such as mAP@.5, for each of its seeds.

    Attributes:
        points: (seeds,) the number on the split as it is.
        resampled: (draws, seeds) the number on drawn images; the same draws for all rows on one split. NaN where a
            draw does not define it.
    """

    points: NDArray[np.float64]
    resampled: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(self.points.mean())


@dataclass(frozen=True)
class Difference:
    """Mean of row A less mean of row B.

    Attributes:
        value: In the unit of the scores.
        error: Standard error: of images, and of seeds where each row has two or more.
        degrees: Degrees of freedom of that error (Welch and Satterthwaite).
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Two-sided p-value of "there is no difference".
        image_error: The part of `error` that another sample of images would change.
        seed_error: The part that other seeds would change; None where a row has one seed, and it is unknown.
    """

    value: float
    error: float
    degrees: float
    low: float
    high: float
    p: float
    image_error: float
    seed_error: float | None

    @property
    def smallest(self) -> float | None:
        """The smallest true difference that this comparison would find with 80 % probability."""
        return smallest_difference(self.error, self.degrees)


def difference(a: Scores, b: Scores, images: int) -> Difference | None:
    """Compares two rows on the same images.

    The variance is that of images (paired bootstrap of the rows' means) and of seeds (their variance between seeds),
    less what both count: the luck of one seed with one image. See docs/statistics.md.

    Args:
        a: One row.
        b: The other; seeds of the two are not pairs.
        images: How many images a draw has.

    Returns:
        The difference; None where too few draws define the number to say anything.
    """
    defined = np.isfinite(a.resampled).all(axis=1) & np.isfinite(b.resampled).all(axis=1)
    if np.count_nonzero(defined) < _LEAST_DRAWS or images < 2:
        return None
    grow = images / (images - 1)  # a bootstrap's variance is that much too small
    paired = a.resampled[defined].mean(axis=1) - b.resampled[defined].mean(axis=1)
    from_images = float(paired.var(ddof=1)) * grow
    from_seeds, squares = 0.0, from_images**2 / (images - 1)
    for row in (a, b):
        seeds = len(row.points)
        if seeds > 1:
            from_seeds += seed_variance(row, images)
            squares += (float(row.points.var(ddof=1)) / seeds) ** 2 / (seeds - 1)
    value, variance = a.mean - b.mean, from_images + from_seeds
    error = math.sqrt(variance)
    degrees = variance**2 / squares if squares > 0 else float(images - 1)
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(value) / error, degrees)) if error > 0 else float(value == 0)
    known = min(len(a.points), len(b.points)) > 1
    return Difference(
        value=value,
        error=error,
        degrees=degrees,
        low=value - half,
        high=value + half,
        p=p,
        image_error=math.sqrt(from_images),
        seed_error=math.sqrt(from_seeds) if known else None,
    )


def seed_variance(row: Scores, images: int) -> float:
    """Returns the variance that seeds give a row's mean, less the luck of single seeds with single images.

    Different seeds differ on a split partly because each is lucky with other images of it. The bootstrap over images
    already holds that part, which shows in how much more one seed's mean varies there than the mean of all.

    Args:
        row: Two seeds or more.
        images: How many images a draw has.
    """
    seeds = len(row.points)
    drawn = row.resampled[np.isfinite(row.resampled).all(axis=1)]
    single, together = drawn.var(axis=0, ddof=1).mean(), drawn.mean(axis=1).var(ddof=1)
    luck = (single - together) / (seeds - 1) * images / (images - 1)
    return max(0.0, float(row.points.var(ddof=1) / seeds - luck))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusts the p-values of one family of tests (Holm 1979).

    With adjusted values below 0.05 called differences, the chance of one false call or more in the whole family is at
    most 5 %, whatever the dependence between the tests.

    Args:
        p: (tests,).
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def smallest_difference(error: float, degrees: float) -> float | None:
    """Returns the smallest true difference that a two-sided t test at `LEVEL` finds with probability `POWER`.

    Args:
        error: Standard error of the difference.
        degrees: Its degrees of freedom.

    Returns:
        In the unit of the error; None where so few degrees of freedom leave it undefined.
    """
    if error <= 0:
        return 0.0
    if degrees > 1e4:  # the normal distribution to three digits and more
        return error * float(stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER))
    critical = float(stats.t.ppf(1 - LEVEL / 2, degrees))

    def missing(effect: float) -> float:
        # Finding it with the wrong sign is too rare to count here.
        return float(stats.nct.sf(critical, degrees, effect)) - POWER

    try:
        return error * float(optimize.brentq(missing, 0.0, 2 * critical + 5))
    except ValueError:
        return None


def separate(rows: Sequence[Scores], images: int) -> tuple[list[tuple[int, ...]], float | None]:
    """Compares every row with every other; Holm's family is all pairs.

    Args:
        rows: One number of each row, such as mAP@.5, on one split.
        images: How many images a draw has.

    Returns:
        Groups of rows that cannot be told apart, as places in `rows` (see `separable_groups`), and the smallest
        difference found with 80 % probability, median over pairs, in the unit of the scores; None where there is one
        row, or too few seeds to say.
    """
    order = sorted(range(len(rows)), key=lambda i: -rows[i].mean)
    pairs = list(itertools.combinations(order, 2))
    found = [difference(rows[i], rows[j], images) for i, j in pairs]
    known = [(pair, entry) for pair, entry in zip(pairs, found, strict=True) if entry is not None]
    adjusted = holm([entry.p for _, entry in known])
    apart = {pair for (pair, _), p in zip(known, adjusted, strict=True) if p < LEVEL}
    smallest = [value for _, entry in known if (value := entry.smallest) is not None]
    groups = separable_groups(order, [pair for pair in pairs if pair not in apart])
    return groups, statistics.median(smallest) if smallest else None


def separable_groups(names: Sequence[T], inseparable: Iterable[tuple[T, T]]) -> list[tuple[T, ...]]:
    """Finds the largest groups in which no two rows can be told apart.

    Two rows share a group exactly when they are inseparable; a row may be in several groups, so "in one group" does
    not carry over from neighbour to neighbour.

    Args:
        names: Rows, best first.
        inseparable: Pairs of them.

    Returns:
        Groups by their best member, members best first; a row that differs from all is a group of its own.
    """
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(names)
    graph.add_edges_from(inseparable)
    place = {name: index for index, name in enumerate(names)}
    groups = (tuple(sorted(clique, key=place.__getitem__)) for clique in networkx.find_cliques(graph))
    return sorted(groups, key=lambda group: [place[name] for name in group])
