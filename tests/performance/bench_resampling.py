"""Times the bootstrap of mAP on a set of the paper's size, on one core.

Run from the repository: python tests/performance/bench_resampling.py
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import resource
import time

import numpy as np
from bench_evaluate import make_case

from benchmark.evaluate import evaluate
from benchmark.statistics.resampling import RESAMPLES, MatchedSplit, draw_images, mean_ap


def main() -> None:
    """Prints processor seconds; fails if the split as it is has another mAP than `evaluate` gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=530)
    parser.add_argument("--detections", type=int, default=300, help="of each image")
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    arguments = parser.parse_args()
    truth, detections = make_case(arguments.images, arguments.detections)
    metrics = evaluate(truth, detections)

    start, wall = time.process_time(), time.perf_counter()
    split = MatchedSplit.of(truth, detections)
    matching = time.process_time() - start
    value = mean_ap(split.average_precision(np.ones((1, split.images), int)))[0]
    if not np.allclose(value, [metrics.map50, metrics.map50_95], rtol=0, atol=1e-9):
        raise SystemExit(f"DIFFERENT NUMBERS: {value} and {metrics}")
    start = time.process_time()
    values = mean_ap(split.average_precision(draw_images(split.images, arguments.resamples)))
    resampling = time.process_time() - start
    wall = time.perf_counter() - wall
    print(f"{arguments.images} images, {len(detections)} detections, {arguments.resamples} resamples")
    print(f"matching    {matching:6.2f} s of processor time")
    print(f"resampling  {resampling:6.2f} s of processor time")
    print(f"together    {wall:6.2f} s of wall time")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MiB")
    print(f"mAP@.5 {value[0]:.3f}, 95 % of resamples within {np.percentile(values[:, 0], [2.5, 97.5])}")


if __name__ == "__main__":
    main()
