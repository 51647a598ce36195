"""Greedy non-maximum suppression in NumPy: mmcv's compiled operator box for box, and fast on 30,000 boxes.

The compiled operator compares every kept box with every later one. Here a box is compared only with the kept
boxes that can exceed the threshold t with it, found through a grid:

* `intersection / union > t` needs an overlap of more than t times the larger width (and height). So widths
  are within a factor `1 / t` of each other, and centres no further apart than `_Axis.reach`.
* Kept boxes do not exceed t among themselves, so only so many fit into that neighbourhood, whatever the
  input: a pile of 30,000 boxes costs no more than 30,000 scattered ones.

What decides on a pair (`_Boxes.exceed`) is the compiled operator's arithmetic, operation by operation in its
dtype; the grid only leaves out pairs that cannot exceed t.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_BLOCK = 512
"""Boxes decided together: against all kept ones, then densely against each other."""
_DENSE_GAIN = 8
"""How much faster a pair is compared in a dense block than looked up (measured: 5 to 10 times)."""
_PAIRS_AT_ONCE = 1 << 18
_MOST_CELLS = 1 << 20
_MARGIN = 1e-5
"""Relative slack of everything that leaves out pairs, far above the rounding of float32."""
_LEAST_THRESHOLD = 0.05
"""Below it sizes and distances say too little: only boxes that cannot touch are left out."""


def greedy_keep(boxes: Floats, threshold: float, offset: int) -> Booleans:
    """Keeps each box that no kept box before it overlaps by more than the threshold.

    Args:
        boxes: (N, 4) float32 or float64, x1 y1 x2 y2, best first.
        threshold: Intersection over union above which the later box goes; compared in the dtype of `boxes`.
        offset: 0, or 1 where x2 and y2 are the last pixel inside (sizes are then `x2 - x1 + 1`).

    Returns:
        (N,) True for the kept boxes.
    """
    every = _Boxes(boxes, threshold, offset)
    keep = np.ones(len(boxes), dtype=bool)
    if threshold < 0:  # boxes that do not even touch suppress each other
        for box in range(len(keep)):
            if keep[box]:
                keep[box + 1 :] &= ~every.exceed(box, slice(box + 1, None))
        return keep
    # Any other box exceeds no threshold >= 0 with anything: the quotient is 0, or not a number.
    solid = np.flatnonzero((every.width > 0) & (every.height > 0) & np.isfinite(every.area))
    if len(solid):
        keep[solid] = _keep_solid(_Boxes(boxes[solid], threshold, offset))
    return keep


class _Boxes:
    """Boxes by column, and the decision on a pair."""

    def __init__(self, boxes: Floats, threshold: float, offset: int) -> None:
        number = boxes.dtype.type
        self.threshold, self.offset = number(threshold), number(offset)
        self.x1, self.y1, self.x2, self.y2 = (np.ascontiguousarray(column) for column in boxes.T)
        with np.errstate(all="ignore"):
            self.width: Floats = self.x2 - self.x1 + self.offset
            self.height: Floats = self.y2 - self.y1 + self.offset
            self.area: Floats = self.width * self.height

    def exceed(self, first: Any, second: Any) -> Booleans:
        """Whether boxes `first` and `second` (indices, broadcast) overlap by more than the threshold."""
        with np.errstate(all="ignore"):
            width = np.minimum(self.x2[first], self.x2[second]) - np.maximum(self.x1[first], self.x1[second])
            width += self.offset
            height = np.minimum(self.y2[first], self.y2[second]) - np.maximum(self.y1[first], self.y1[second])
            height += self.offset
            overlap = np.maximum(width, 0, out=width)
            overlap *= np.maximum(height, 0, out=height)
            union = self.area[first] + self.area[second]
            union -= overlap
            overlap /= union
            result: Booleans = overlap > self.threshold
            return result


def _keep_solid(boxes: _Boxes) -> Booleans:
    """`greedy_keep` for boxes of positive extent and a threshold of at least 0."""
    keep = np.zeros(len(boxes.area), dtype=bool)
    grid = _Grid(boxes)
    for start in range(0, len(keep), _BLOCK):
        block: Integers = np.arange(start, min(start + _BLOCK, len(keep)))
        block = block[~grid.suppresses(block)]
        exceed = np.triu(boxes.exceed(block[:, None], block[None, :]), k=1)
        survive = np.ones(len(block), dtype=bool)
        for row in np.flatnonzero(exceed.any(axis=1)):
            if survive[row]:
                survive &= ~exceed[row]
        keep[block[survive]] = True
        grid.add(block[survive])
    return keep


class _Grid:
    """The kept boxes, sorted by level of width, level of height, row and column."""

    def __init__(self, boxes: _Boxes) -> None:
        self.boxes = boxes
        threshold = min(float(boxes.threshold), 1.0) * (1 - _MARGIN)
        # Where areas are next to nothing, the quotient has no precision left to rely on.
        precise = boxes.area.min() > 1e6 * np.finfo(boxes.area.dtype).tiny
        threshold = threshold if precise and threshold >= _LEAST_THRESHOLD else 0.0
        self.x = _Axis(boxes.x1, boxes.width, threshold)
        self.y = _Axis(boxes.y1, boxes.height, threshold)
        row, column = self.y.cell(self.y.centre, self.y.level), self.x.cell(self.x.centre, self.x.level)
        self.key = self._key(self.x.level, self.y.level, row, column)
        self.kept: Integers = np.empty(0, dtype=np.int64)
        self.kept_keys: Integers = np.empty(0, dtype=np.int64)

    def _key(self, x_level: Integers, y_level: Integers, row: Integers, column: Integers) -> Integers:
        level = x_level * len(self.y.cell_size) + y_level
        key: Integers = (level * _MOST_CELLS + row) * _MOST_CELLS + column
        return key

    def add(self, boxes: Integers) -> None:
        """Adds boxes to the kept ones."""
        kept, keys = np.append(self.kept, boxes), np.append(self.kept_keys, self.key[boxes])
        order = np.argsort(keys, kind="stable")
        self.kept, self.kept_keys = kept[order], keys[order]

    def suppresses(self, boxes: Integers) -> Booleans:
        """Whether a kept box overlaps each of these (B,) by more than the threshold."""
        result = np.zeros(len(boxes), dtype=bool)
        if len(self.kept) > _BLOCK:
            box, begin, count = self._near(boxes)
            if count.sum() * _DENSE_GAIN < len(boxes) * len(self.kept):
                borders = np.flatnonzero(np.diff(np.cumsum(count) // _PAIRS_AT_ONCE)) + 1
                for part in np.split(np.arange(len(count)), borders):
                    owner, place = _expand(begin[part], count[part])
                    query = box[part[owner]]
                    result[query[self.boxes.exceed(boxes[query], self.kept[place])]] = True
                return result
        for start in range(0, len(self.kept), _BLOCK):
            left, kept = np.flatnonzero(~result), self.kept[start : start + _BLOCK]
            result[left] = self.boxes.exceed(boxes[left, None], kept).any(axis=1)
        return result

    def _near(self, boxes: Integers) -> tuple[Integers, Integers, Integers]:
        """Runs of the kept boxes that lie near these: near which (0 to B - 1), begin of the run, length."""
        # Each step multiplies the look-ups: by the levels of width, by the levels of height, by the rows.
        box, x_level = _expand(*self.x.levels(boxes))
        owner, y_level = _expand(*self.y.levels(boxes[box]))
        box, x_level = box[owner], x_level[owner]
        owner, row = _expand(*self.y.cells(boxes[box], y_level))
        box, x_level, y_level = box[owner], x_level[owner], y_level[owner]
        column, count = self.x.cells(boxes[box], x_level)
        first, last = (self._key(x_level, y_level, row, c) for c in (column, column + count - 1))
        begin = np.searchsorted(self.kept_keys, first, side="left")
        end = np.searchsorted(self.kept_keys, last, side="right")
        found = np.flatnonzero(end > begin)
        return box[found], begin[found], (end - begin)[found]


class _Axis:
    """One direction of the grid.

    A level holds the sizes within a factor 4 of each other and has cells of its own size, so that a box looks
    into a few cells of a few levels, however large or small it is.
    """

    def __init__(self, low: Floats, size: Floats, threshold: float) -> None:
        self.threshold = threshold
        self.size = size.astype(np.float64)
        self.centre = low + self.size / 2
        self.lowest = float(self.centre.min())
        span = float(self.centre.max()) - self.lowest
        largest = float(self.size.max())
        touching = (self.size + largest) / 2
        if threshold:
            # The overlap is at most the mean size less the distance of the centres, and at least the
            # threshold times the larger size: so far apart at the most favourable size of the partner.
            farthest = (1 - threshold) * max(1.0, 0.5 / threshold)
            self.least_level = int(_level(self.size.min()))
            self.level = _level(self.size) - self.least_level
            levels = np.arange(self.level.max() + 1) + self.least_level
            cell_size = 2 * farthest * 4.0**levels
            self.reach = np.minimum(self.size * farthest, touching)
        else:
            self.least_level, self.level = 0, np.zeros(len(size), dtype=np.int64)
            cell_size = np.array([largest / 2])
            self.reach = touching
        rounding = 4 * np.finfo(np.float64).eps * np.abs(self.centre).max()
        self.reach = self.reach + _MARGIN * touching + rounding
        least_cell = max(span / (_MOST_CELLS - 1), float(np.finfo(np.float64).tiny))
        self.cell_size = np.maximum(cell_size, least_cell)

    def levels(self, boxes: Integers) -> tuple[Integers, Integers]:
        """First level and number of levels of the sizes that can exceed the threshold with each box."""
        if not self.threshold:
            return np.zeros_like(boxes), np.ones_like(boxes)
        first = np.maximum(_level(self.size[boxes] * self.threshold) - self.least_level, 0)
        last = np.minimum(
            _level(self.size[boxes] / self.threshold) - self.least_level, len(self.cell_size) - 1
        )
        return first, last - first + 1

    def cells(self, boxes: Integers, level: Integers) -> tuple[Integers, Integers]:
        """First cell and number of cells of a level that are within reach of each box."""
        first = self.cell(self.centre[boxes] - self.reach[boxes], level)
        last = self.cell(self.centre[boxes] + self.reach[boxes], level)
        return first, last - first + 1

    def cell(self, position: npt.NDArray[np.float64], level: Integers) -> Integers:
        """The cell of a level that a position lies in, or the nearest."""
        cell = np.floor((position - self.lowest) / self.cell_size[level])
        return np.clip(cell, 0, _MOST_CELLS - 1).astype(np.int64)


def _level(size: Any) -> Any:
    """The whole part of a positive size's logarithm to the base 4, up to a constant."""
    return np.frexp(size)[1].astype(np.int64) >> 1


def _expand(first: Integers, count: Integers) -> tuple[Integers, Integers]:
    """Lists the integers `first[i]` to `first[i] + count[i] - 1` for every i, beside the i of each."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + (first - np.cumsum(count) + count)[owner]
