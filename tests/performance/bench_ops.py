"""Measures NMS on 30,000 boxes and RoIAlign with its gradient, both without compiled operators.

    python tests/performance/bench_ops.py [--boxes 30000] [--repeats 3]

Prints CPU seconds of one thread (best of the repeats; they hold on a loaded machine too). NMS is compared with the
plain sweep, one vectorised comparison of each kept box with all later ones, and RoIAlign with torchvision's kernel
where torchvision has its compiled operators.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from baselines import _nms, _ops, _roi_align, openmmlab


def box_sets(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields named sets of (count, 4) float32 boxes, best first, from almost nothing overlapping to everything."""
    rng = np.random.default_rng(0)

    def boxes(centre: np.ndarray, size: np.ndarray) -> np.ndarray:
        return np.hstack([centre - size / 2, centre + size / 2]).astype(np.float32)

    yield "scattered, few overlap", boxes(rng.uniform(0, 10_000, (count, 2)), np.full((count, 2), 20.0))
    all_sizes = np.exp(rng.uniform(np.log(4), np.log(400), (count, 2)))
    yield "all sizes, 640 x 640", boxes(rng.uniform(0, 640, (count, 2)), all_sizes)
    yield "large, 640 x 640", boxes(rng.uniform(0, 640, (count, 2)), rng.uniform(1, 190, (count, 2)))
    thin = np.exp(rng.uniform(0, np.log(1000), (count, 2)))
    yield "thin and thick", boxes(rng.uniform(0, 3000, (count, 2)), thin)
    objects = rng.integers(0, 20, count)
    centre = rng.uniform(0, 640, (20, 2))[objects] + rng.normal(0, 4, (count, 2))
    size = rng.uniform(20, 200, (20, 2))[objects] * np.exp(rng.normal(0, 0.1, (count, 2)))
    yield "a detector's, 20 objects", boxes(centre, size)
    yield "all the same", boxes(np.full((count, 2), 50.0), np.full((count, 2), 20.0))


def sweep(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """The plain algorithm."""
    x1, y1, x2, y2 = (np.ascontiguousarray(column) for column in boxes.T)
    area = (x2 - x1) * (y2 - y1)
    keep = np.ones(len(boxes), dtype=bool)
    for i in range(len(boxes)):
        if keep[i]:
            width = np.minimum(x2[i], x2[i + 1 :]) - np.maximum(x1[i], x1[i + 1 :])
            height = np.minimum(y2[i], y2[i + 1 :]) - np.maximum(y1[i], y1[i + 1 :])
            overlap = width.clip(min=0) * height.clip(min=0)
            keep[i + 1 :] &= ~(overlap / (area[i] + area[i + 1 :] - overlap) > np.float32(threshold))
    return keep


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """CPU time of the fastest of some calls."""
    best = np.inf
    for _ in range(repeats):
        started = time.process_time()
        call()
        best = min(best, time.process_time() - started)
    return float(best)


def nms_table(count: int, repeats: int) -> Table:
    table = Table(
        "boxes", "threshold", "kept", "seconds", "plain sweep", "times", title=f"NMS, {count:,} boxes"
    )
    for name, boxes in box_sets(count):
        for threshold in (0.3, 0.5, 0.7):
            keep = _nms.greedy_keep(boxes, threshold, 0)
            ours = cpu_seconds(lambda b=boxes, t=threshold: _nms.greedy_keep(b, t, 0), repeats)
            plain = cpu_seconds(lambda b=boxes, t=threshold: sweep(b, t), 1)
            assert np.array_equal(keep, sweep(boxes, threshold))
            table.add_row(
                name, f"{threshold}", f"{keep.sum():,}", f"{ours:.3f}", f"{plain:.3f}", f"{plain / ours:.1f}"
            )
    return table


def roi_table(repeats: int) -> Table:
    table = Table("feature map", "regions", "forward", "backward", title="RoIAlign 7 x 7, 256 channels")
    generator = torch.Generator().manual_seed(0)
    compiled = openmmlab.describe()["torchvision_ops"] == "compiled"
    for size, count in ((16, 512), (64, 512), (64, 2000)):
        features = torch.randn(1, 256, size, size, generator=generator)
        wide = (torch.rand(count, 2, generator=generator) * 0.3 + 0.1) * size * 4
        centre = torch.rand(count, 2, generator=generator) * size * 4
        rois = torch.cat([torch.zeros(count, 1), centre - wide / 2, centre + wide / 2], dim=1)
        gradient = torch.randn(count, 256, 7, 7, generator=generator)
        pooling = _roi_align.Pooling(0.25, 7, 7, 0, True)
        forward = cpu_seconds(lambda f=features, r=rois, p=pooling: _roi_align.average(f, r, p), repeats)
        backward = cpu_seconds(
            lambda f=features, g=gradient, r=rois, p=pooling: _roi_align.average_gradient(g, f.shape, r, p),
            repeats,
        )
        table.add_row(f"{size} x {size}", f"{count}", f"{forward:.3f}", f"{backward:.3f}")
        if compiled:
            arguments = (0.25, 7, 7, 0, True)
            forward = cpu_seconds(
                lambda f=features, r=rois, a=arguments: torch.ops.torchvision.roi_align(f, r, *a), repeats
            )
            table.add_row("", "torchvision", f"{forward:.3f}", "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    openmmlab.activate()
    torch.set_num_threads(1)
    boxes = torch.from_numpy(next(box_sets(arguments.boxes))[1])
    scores = torch.linspace(1, 0, len(boxes))
    console = Console()
    console.print(nms_table(arguments.boxes, arguments.repeats))
    through = cpu_seconds(lambda: _ops.nms(boxes, scores, 0.7), arguments.repeats)
    console.print(f"the first set at 0.7 as mmcv calls it, with the sort: {through:.3f} s\n")
    console.print(roi_table(arguments.repeats))


if __name__ == "__main__":
    main()
