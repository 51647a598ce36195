"""Pseudo boxes: the anomalous regions of a map as boxes of one class (paper section 3.3).

A category's threshold follows its own maps: the mean of their maxima, less a margin. What lies above it, at the
image's size, falls into connected regions; each large enough is a box, scored by its highest value.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agssp.box_settings import BoxSettings
from agssp.box_store import BoxRow, BoxStore, existing_boxes, write_boxes
from agssp.upsampling import Map, axis, upsample
from baselines._nms import greedy_keep
from datasets_builders.errors import UserError
from datasets_builders.images import MAX_PIXELS
from datasets_builders.machine import cores

if TYPE_CHECKING:
    from agssp.map_store import MapRow, MapStore

LEAST_AREA = 10
_AGAIN = "make the maps again with python -m agssp maps"
# Far above the rounding of `upsample`, far below any difference that a float16 map can show.
_ROUNDING = 1e-5
# Maps in memory: at most so many, of at most so many values together; and a thread's share of them.
_ROWS_AT_ONCE, _VALUES_AT_ONCE, _ROWS_A_TASK = 2048, 2**24, 32
VERSION = 1


class Boxes(NamedTuple):
    """Boxes of one image, best first.

    Attributes:
        xywh: (n, 4) float32, left, top, width, height in pixels, whole numbers.
        scores: (n,) float32, the map's highest value in the region.
        areas: (n,) float32, the region's number of pixels; with `contours` including its holes.
    """

    xywh: NDArray[np.float32]
    scores: NDArray[np.float32]
    areas: NDArray[np.float32]


def no_boxes() -> Boxes:
    """Returns the boxes of an image without any."""
    return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32))


def thresholds(maps: MapStore, settings: BoxSettings) -> dict[str, float]:
    """Returns every category's threshold: the mean over its images of the map's maximum, less the margin.

    The maximum is that of the map as stored, on its grid, so the threshold does not depend on the images' sizes;
    interpolated values never exceed it. All images count, also those that `image_gate` leaves without boxes. Maps are
    read once, one at a time; as they are float16 the sums are exact, whatever the order of the images.

    Raises:
        UserError: A map or an image score holds values that are not finite, or an image's size cannot be.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for row in maps:
        _check(row.map, (row.width, row.height), f"The map of image {row.image_id!r}")
        if not math.isfinite(row.image_score):
            raise UserError(f"The score of image {row.image_id!r} is not finite: {_AGAIN}.")
        sums[row.category] = sums.get(row.category, 0.0) + float(row.map.max())
        counts[row.category] = counts.get(row.category, 0) + 1
    return {name: sums[name] / counts[name] - settings.margin for name in sorted(sums)}


def boxes_from_map(
    values: Map, size: tuple[int, int], threshold: float, settings: BoxSettings | None = None
) -> Boxes:
    """Finds the boxes of one map.

    Args:
        values: (h, w) float32, the map on its grid.
        size: (width, height) of the image in pixels.
        threshold: Values above it, rounded to float32, are anomalous.
        settings: The default ones if None; `margin` and `image_gate` are of no effect here.

    Returns:
        At most `settings.top` boxes. Boxes of equal scores are ordered by area, larger first, then from top to
        bottom and left to right.

    Raises:
        UserError: The map holds values that are not finite, or the size is none of an image.
    """
    settings = settings or BoxSettings()
    _check(values, size, "A map")
    width, height = size
    window = _window(values, size, threshold)
    if window is None:
        return no_boxes()
    rows, columns = window
    pixels = upsample(values, size, rows, columns)
    least = max((height // 100) * (width // 100), LEAST_AREA)
    found = _regions(pixels, pixels > np.float32(threshold), least, settings.outline)
    if not len(found.xywh):
        return found
    xywh = found.xywh + np.array([columns.start, rows.start, 0, 0], np.float32)
    # By score, then area, then place: OpenCV's own order of regions is an implementation detail.
    order = np.lexsort((xywh[:, 0], xywh[:, 1], -found.areas, -found.scores))[: settings.top]
    if len(order) > 1:
        corners = np.hstack([xywh[order, :2], xywh[order, :2] + xywh[order, 2:]])
        order = order[greedy_keep(corners, settings.nms_iou, 0)]
    return Boxes(xywh[order], found.scores[order], found.areas[order])


def make_boxes(
    maps: MapStore,
    out: Path,
    settings: BoxSettings | None = None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> BoxStore:
    """Makes the boxes of all maps and stores them; the folder appears whole or not at all.

    Args:
        maps: The maps.
        out: Folder to make. One that holds the same boxes already is left as it is.
        settings: The default ones if None.
        workers: Threads; as many as cores by default. The result does not depend on it.
        on_progress: Called with the number of images done.

    Raises:
        UserError: The maps cannot be used, or `out` holds anything else.
    """
    settings = settings or BoxSettings()
    identity = {"version": VERSION, "maps": maps.fingerprint, "settings": asdict(settings)}
    if (ready := existing_boxes(out, identity)) is not None:
        return ready
    limits = thresholds(maps, settings)

    def boxes_of(rows: list[MapRow]) -> list[BoxRow]:
        return [_box_row(row, limits[row.category], settings) for row in rows]

    def all_rows() -> Iterator[BoxRow]:
        done = 0
        source = iter(maps)
        at_once = min(_ROWS_AT_ONCE, max(1, _VALUES_AT_ONCE // math.prod(maps.grid)))
        while batch := list(islice(source, at_once)):
            tasks = [batch[start : start + _ROWS_A_TASK] for start in range(0, len(batch), _ROWS_A_TASK)]
            for rows in threads.map(boxes_of, tasks):
                yield from rows
                done += len(rows)
                if on_progress is not None:
                    on_progress(done)

    # NumPy and OpenCV release the interpreter's lock where the time goes.
    with _one_opencv_thread(), ThreadPoolExecutor(workers or cores()) as threads:
        return write_boxes(out, identity, limits, all_rows(), maps.identity)


def _box_row(row: MapRow, threshold: float, settings: BoxSettings) -> BoxRow:
    gated = settings.image_gate is not None and row.image_score < np.float32(settings.image_gate)
    size = row.width, row.height
    found = no_boxes() if gated else boxes_from_map(row.map, size, threshold, settings)
    return BoxRow(row.image_id, row.category, *size, found.xywh, found.scores, found.areas)


def _check(values: Map, size: tuple[int, int], which: str) -> None:
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise UserError(f"{which} is empty or holds values that are not finite: {_AGAIN}.")
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"{which} is of {size[0]} x {size[1]} pixels, which cannot be: images have 1 to {MAX_PIXELS:,} pixels."
        )


def _window(values: Map, size: tuple[int, int], threshold: float) -> tuple[slice, slice] | None:
    """Returns rows and columns of the image outside of which no pixel is above the threshold.

    A pixel is a mixture of four grid points, so it needs one of them above the threshold. None: there is none.
    """
    above = values > threshold - _ROUNDING * max(1.0, float(np.abs(values).max()))
    if not above.any():
        return None
    spans = []
    for grid_axis, pixels in ((1, size[1]), (0, size[0])):
        hot = np.flatnonzero(above.any(axis=grid_axis))
        starts = axis(values.shape[1 - grid_axis], pixels).starts
        spans.append(slice(int(starts[max(hot[0] - 1, 0)]), int(starts[hot[-1] + 1])))
    rows, columns = spans
    if rows.start == rows.stop or columns.start == columns.stop:
        return None  # A grid finer than the image: no pixel lies near those points.
    return rows, columns


def _regions(pixels: Map, above: NDArray[np.bool_], least: int, outline: str) -> Boxes:
    """Returns the regions of at least so many pixels, in no particular order.

    A region is drawn from its outline and its holes': the same pixels as of OpenCV's connected components
    (8 neighbours), in a quarter of the time, because regions are few and smooth.
    """
    mode = cv2.RETR_CCOMP if outline == "components" else cv2.RETR_EXTERNAL
    contours, tree = cv2.findContours(above.view(np.uint8), mode, cv2.CHAIN_APPROX_NONE)
    boxes, scores, areas = [], [], []
    place = 0 if contours else -1
    while place >= 0:
        following, _, hole, _ = tree[0, place].tolist()
        x, y, width, height = cv2.boundingRect(contours[place])
        if width * height >= least:
            lines = [contours[place]]
            while hole >= 0:
                lines.append(contours[hole])
                hole = int(tree[0, hole, 0])
            region = np.zeros((height, width), np.uint8)
            cv2.fillPoly(region, lines, 1, offset=(-x, -y))
            area = cv2.countNonZero(region)
            if area >= least:
                boxes.append((x, y, width, height))
                areas.append(area)
                scores.append(cv2.minMaxLoc(pixels[y : y + height, x : x + width], region)[1])
        place = following
    return Boxes(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(areas, np.float32)
    )


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Keeps OpenCV from starting threads of its own beside ours."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
