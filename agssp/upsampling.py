"""From a map on the patch grid to the pixels of its image: bilinear, corner pixels on corner patches.

The rule is that of pixel evaluation (`align_corners=True`): pixel i of N lies at `i * (n - 1) / (N - 1)` on a grid
of n. Values are computed in float32 by a fixed sequence of operations, so a part of an image has, bit for bit, the
values that the whole has there, and results differ with no library, thread count or batch size.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]


class Axis(NamedTuple):
    """Where the pixels of one image axis lie on the grid.

    Attributes:
        low: (pixels,) int64, the grid point at or before each pixel, not decreasing.
        high: (pixels,) int64, the next grid point, or the last one.
        fraction: (pixels,) float32 in [0, 1), the way from `low` to `high`.
        starts: (grid + 1,) int64; pixels `starts[k]:starts[k + 1]` have `low == k`.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    fraction: Map
    starts: NDArray[np.int64]


@functools.lru_cache(maxsize=1024)
def axis(grid: int, pixels: int) -> Axis:
    """Returns where `pixels` pixels lie on `grid` grid points."""
    # In whole numbers, so that pixels which meet a grid point have a fraction of exactly 0.
    steps = max(pixels - 1, 1)
    low, rest = np.divmod(np.arange(pixels, dtype=np.int64) * (grid - 1), steps)
    fraction = (rest / steps).astype(np.float32)
    # Rounding to float32 may reach 1 where an axis has more pixels than float32 has digits.
    np.minimum(fraction, np.nextafter(np.float32(1), np.float32(0)), out=fraction)
    starts = np.searchsorted(low, np.arange(grid + 1))
    found = Axis(low, np.minimum(low + 1, grid - 1), fraction, starts)
    for array in found:
        array.setflags(write=False)
    return found


def upsample(
    values: Map, size: tuple[int, int], rows: slice = slice(None), columns: slice = slice(None)
) -> Map:
    """Interpolates a map at the pixels of its image, or of a rectangle of it.

    Args:
        values: (h, w) float32, the map on its grid; the grid may also be finer than the image.
        size: (width, height) of the image in pixels.
        rows: Rows of the image to compute; all by default.
        columns: Columns of the image to compute; all by default.

    Returns:
        float32 of the rectangle's height and width. A constant map stays constant exactly.
    """
    across, down = axis(values.shape[1], size[0]), axis(values.shape[0], size[1])
    left = values[:, across.low[columns]]
    lines = left + (values[:, across.high[columns]] - left) * across.fraction[columns]
    first, last, _ = rows.indices(size[1])
    result = np.empty((max(last - first, 0), lines.shape[1]), np.float32)
    if not len(result):
        return result
    # Cell by cell, because gathering a line for every pixel row costs more than the arithmetic.
    for k in range(int(down.low[first]), int(down.low[last - 1]) + 1):
        start, end = max(int(down.starts[k]), first), min(int(down.starts[k + 1]), last)
        step = lines[min(k + 1, len(lines) - 1)] - lines[k]
        part = result[start - first : end - first]
        np.multiply(down.fraction[start:end, None], step, out=part)
        part += lines[k]
    return result
