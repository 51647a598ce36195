"""Measures pseudo boxes: images per second, against a plain version, with one thread and with one a core.

    python tests/performance/bench_pseudo_boxes.py [--images 2000] [--grid 15] [--width 640] [--height 480]

Maps are of three kinds: peaks on a level ground, as detectors give them (two thirds of the images get boxes);
uniform noise, with many ragged regions in every image; and maps that are above the threshold everywhere. The plain
version is what one would write first: torch's interpolation of the whole map, SciPy's labels and maxima, one thread.
The boxes of both are compared. CPU seconds hold on a loaded machine too; images per second of wall time are those of
`make_boxes` as a whole, from stored maps to stored boxes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "agssp"))

from literal_boxes import literal_iou
from made_maps import defect_map, map_row, store_maps

from agssp.box_settings import BoxSettings
from agssp.pseudo_boxes import boxes_from_map, make_boxes, thresholds
from datasets_builders.machine import cores


def plain(values: np.ndarray, size: tuple[int, int], threshold: float) -> list[tuple[float, ...]]:
    """Boxes x, y, width, height and score, the straightforward way."""
    tensor = torch.from_numpy(values)[None, None]
    pixels = torch.nn.functional.interpolate(
        tensor, size=(size[1], size[0]), mode="bilinear", align_corners=True
    )[0, 0].numpy()
    labels, count = ndimage.label(pixels > np.float32(threshold), structure=np.ones((3, 3)))
    if not count:
        return []
    every = np.arange(1, count + 1)
    areas = np.bincount(labels.ravel())[1:]
    scores = ndimage.maximum(pixels, labels, every)
    least = max((size[1] // 100) * (size[0] // 100), 10)
    found = []
    for (rows, columns), area, score in zip(ndimage.find_objects(labels), areas, scores, strict=True):
        if area >= least:
            box = columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
            found.append((*box, float(score)))
    found.sort(key=lambda item: -item[4])
    kept: list[tuple[float, ...]] = []
    for item in found[:10]:
        if all(literal_iou(item, other) <= 0.8 for other in kept):
            kept.append(item)
    return kept


def same(ours: list[tuple[float, ...]], other: list[tuple[float, ...]]) -> bool:
    """Whether boxes agree but for the rounding of the interpolation, which may move an edge by a pixel."""
    return len(ours) == len(other) and all(
        np.allclose(a[:4], b[:4], atol=1) and abs(a[4] - b[4]) < 1e-5
        for a, b in zip(sorted(ours), sorted(other), strict=True)
    )


def main() -> None:
    """Runs the measurement and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--grid", type=int, default=15)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size, grid = (options.width, options.height), (options.grid, options.grid)
    rng = np.random.default_rng(0)
    kinds = {
        "peaks": lambda k: defect_map(rng, grid, k % 3),
        "noise": lambda k: rng.random(grid),
        "all above": lambda k: np.ones(grid),
    }
    table = Table(
        "maps",
        "boxes",
        "CPU",
        "plain",
        "ratio",
        "agree",
        "wall, 1",
        f"wall, {cores()}",
        title=f"Pseudo boxes, images per second: maps {grid[0]} x {grid[1]}, images {size[0]} x {size[1]}",
        caption="CPU: of one thread. plain: the plain version's. agree: images with the same boxes in both.\n"
        f"wall: from stored maps to stored boxes, with 1 and {cores()} workers.",
    )
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        for kind, make in kinds.items():
            rows = [map_row(f"{k:06}", make(k), size) for k in range(options.images)]
            maps = store_maps(Path(scratch) / kind / "maps", rows)
            limit = thresholds(maps, BoxSettings())["plate"]
            ours, cpu = timed(lambda row, t=limit: boxes_from_map(row.map, size, t), rows)
            few = rows[:100]
            others, plain_cpu = timed(lambda row, t=limit: plain(row.map, size, t), few)
            agree = sum(
                same(
                    [(*box, score) for box, score in zip(a.xywh.tolist(), a.scores.tolist(), strict=True)], b
                )
                for a, b in zip(ours, others, strict=False)
            )
            walls = []
            for workers in (1, cores()):
                started = time.perf_counter()
                made = make_boxes(maps, Path(scratch) / kind / str(workers), workers=workers)
                walls.append(len(rows) / (time.perf_counter() - started))
            table.add_row(
                kind,
                f"{sum(len(row.boxes) for row in made):,}",
                f"{len(rows) / cpu:,.0f}",
                f"{len(few) / plain_cpu:,.0f}",
                f"{(len(rows) / cpu) / (len(few) / plain_cpu):.1f}",
                f"{agree / len(few):.0%}",
                *(f"{wall:,.0f}" for wall in walls),
            )
    Console().print(table)
    Console().print(f"cores: {cores()}; load average when this run began: {load:.1f}")


def timed(call, rows):  # type: ignore[no-untyped-def]
    """Returns the results, and the CPU seconds that they took."""
    call(rows[0])
    started = time.process_time()
    return [call(row) for row in rows], time.process_time() - started


if __name__ == "__main__":
    main()
