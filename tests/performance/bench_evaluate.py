"""Times the evaluator against pycocotools, and the detections file, on a set of the paper's size.

Run from the repository: python tests/performance/bench_evaluate.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate, evaluate_reference

T = TypeVar("T")


def make_case(
    images: int, detections: int, classes: int = 6, seed: int = 0
) -> tuple[GroundTruth, Detections]:
    """Four objects an image; a tenth of the answers lie near one, the rest anywhere."""
    rng = np.random.default_rng(seed)

    def boxes(n: int) -> np.ndarray:
        return np.concatenate([rng.uniform(0, 500, (n, 2)), rng.uniform(5, 100, (n, 2))], axis=1)

    names = [f"class {k}" for k in range(classes)]
    ids = [f"image {i:05d}" for i in range(images)]
    objects = [boxes(4) for _ in ids]
    labels = [rng.integers(0, classes, 4) for _ in ids]
    found, guesses, scores = [], [], []
    for truth, kinds in zip(objects, labels, strict=True):
        answer, guess = boxes(detections), rng.integers(0, classes, detections)
        near = np.arange(detections) < detections // 10
        source = rng.integers(0, 4, near.sum())
        answer[near] = np.maximum(truth[source] + rng.normal(0, 4, (len(source), 4)), 0)
        guess[near] = kinds[source]
        answer[:, 2:] += answer[:, :2]
        found.append(answer)
        guesses.append(guess)
        scores.append(rng.random(detections))
    sizes = np.full((images, 2), 640)
    truth_set = GroundTruth.from_images(names, ids, sizes, objects, labels)
    return truth_set, Detections.from_images(names, ids, found, scores, guesses)


def fastest(run: Callable[[], T], times: int) -> tuple[float, T]:
    """Returns the shortest of several times in seconds, and the result."""
    best, result = float("inf"), None
    for _ in range(times):
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    assert result is not None
    return best, result


def main() -> None:
    """Prints the times and their ratio; fails if the two evaluators differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=530)
    parser.add_argument("--detections", type=int, default=300, help="of each image")
    arguments = parser.parse_args()
    truth, detections = make_case(arguments.images, arguments.detections)
    fast, metrics = fastest(lambda: evaluate(truth, detections), 5)
    slow, reference = fastest(lambda: evaluate_reference(truth, detections), 2)
    if metrics != reference:
        raise SystemExit(f"DIFFERENT NUMBERS:\n{metrics}\n{reference}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.parquet"
        saving, _ = fastest(lambda: detections.save(path), 3)
        loading, _ = fastest(lambda: Detections.load(path), 3)
        size = path.stat().st_size
    print(f"{arguments.images} images, {len(detections)} detections; numbers equal to the last bit")
    print(f"evaluate     {fast:8.3f} s")
    print(f"pycocotools  {slow:8.3f} s   ratio {slow / fast:.0f}x")
    print(
        f"save         {saving:8.3f} s   {size / 1e6:.2f} MB, {size / len(detections):.1f} bytes a detection"
    )
    print(f"load         {loading:8.3f} s")


if __name__ == "__main__":
    main()
