"""Measures the anomaly benchmark's metrics against scikit-learn and a region-by-region AUPRO.

    python tests/performance/bench_anomaly_metrics.py [--images 200] [--size 192]

Both get the same interpolated maps and masks. scikit-learn computes AUROC, average precision and the curve for F1-max;
AUPRO, which it does not have, is computed region by region at every threshold of its ROC curve.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from benchmark.anomaly_metrics import Curve


def made_split(images: int, size: int) -> tuple[NDArray, NDArray, NDArray]:
    """Maps with peaks on defects, their masks, and the masks' regions numbered over all images."""
    rng = np.random.default_rng(0)
    masks = np.zeros((images, size, size), np.uint8)
    for mask in masks[::2]:
        for _ in range(2):
            x, y = rng.integers(0, size, 2).tolist()
            axes = tuple(rng.integers(2, size // 8, 2).tolist())
            cv2.ellipse(mask, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    grid = np.stack(
        [cv2.resize(mask.astype(np.float32), (15, 15), interpolation=cv2.INTER_AREA) for mask in masks]
    )
    grid = 0.4 * grid + 0.2 * rng.random(grid.shape).astype(np.float32)
    maps = np.stack([cv2.resize(values, (size, size)) for values in grid])
    regions, total = np.zeros(masks.shape, np.uint32), 0
    for place, mask in enumerate(masks):
        count, labels = cv2.connectedComponents(mask, connectivity=8)
        regions[place] = np.where(labels > 0, labels + total, 0)
        total += count - 1
    return maps, masks, regions


def ours(maps: NDArray, regions: NDArray) -> list[float]:
    """AUROC, average precision, F1-max, AUPRO."""
    curve = Curve.of(maps.ravel(), regions.ravel())
    return [curve.auroc(), curve.average_precision(), curve.f1_max(), curve.aupro()]


def reference(maps: NDArray, masks: NDArray) -> list[float]:
    """The same from scikit-learn, and AUPRO region by region."""
    truth, values = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(truth, values)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    rates, _, limits = roc_curve(truth, values, drop_intermediate=False)
    keep = np.append(rates[1:] <= 0.3, False)
    keep[np.flatnonzero(keep)[-1] + 1] = True
    rates, limits = rates[np.append(True, keep[:-1])], limits[np.append(True, keep[:-1])]
    overlap, count = np.zeros(len(rates)), 0
    for image, mask in zip(maps, masks, strict=True):
        labels, found = ndimage.label(mask, structure=np.ones((3, 3)))
        for number in range(1, found + 1):
            region = np.sort(image[labels == number])
            overlap += 1 - np.searchsorted(region, limits) / len(region)
            count += 1
    overlap /= count
    inside = rates <= 0.3
    x = np.append(rates[inside], 0.3)
    y = np.append(overlap[inside], np.interp(0.3, rates, overlap))
    return [
        roc_auc_score(truth, values),
        average_precision_score(truth, values),
        f1,
        np.trapezoid(y, x) / 0.3,
    ]


def main() -> None:
    """Prints both times, their ratio, and the largest difference of the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=192)
    arguments = parser.parse_args()
    maps, masks, regions = made_split(arguments.images, arguments.size)
    seconds, answers = [], []
    for compute in (lambda: ours(maps, regions), lambda: reference(maps, masks)):
        began = time.process_time()
        answers.append(compute())
        seconds.append(time.process_time() - began)
    table = Table(title=f"pixel metrics of {arguments.images} images, {arguments.size} x {arguments.size}")
    for column in ("", "CPU seconds", "AUROC", "AP", "F1-max", "AUPRO"):
        table.add_column(column)
    for name, spent, answer in zip(("ours", "scikit-learn"), seconds, answers, strict=True):
        table.add_row(name, f"{spent:.2f}", *(f"{value:.6f}" for value in answer))
    console = Console()
    console.print(table)
    difference = float(np.abs(np.subtract(*answers)).max())
    console.print(f"{seconds[1] / seconds[0]:.1f} times as fast; largest difference {difference:.1e}")
    if difference > 1e-6:
        raise SystemExit("the numbers differ")


if __name__ == "__main__":
    main()
