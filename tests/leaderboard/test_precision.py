"""Precision-recall curves: their area is the AP that pycocotools computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_board import detections_of

from benchmark.evaluate import GroundTruth, evaluate_reference
from leaderboard.precision import RECALLS, _interpolated, _of_detections


def truth(images: int = 40, seed: int = 0) -> GroundTruth:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, images)
    boxes = [np.hstack([rng.uniform(0, 150, (n, 2)), rng.uniform(15, 50, (n, 2))]) for n in counts]
    labels = [rng.integers(0, 3, n) for n in counts]
    return GroundTruth.from_images(
        ("a", "b", "c", "never"),
        [f"{i:03d}" for i in range(images)],
        np.full((images, 2), 200),
        boxes,
        labels,
    )


@pytest.mark.parametrize("share", [0.2, 0.7, 1.0])
def test_the_area_under_a_curve_is_the_classes_ap(share: float) -> None:
    labels = truth()
    detections = detections_of(labels, share, seed=1)
    found = _of_detections(labels, detections)
    expected = {entry.name: entry.ap50 for entry in evaluate_reference(labels, detections).per_class}
    assert set(found) == {"a", "b", "c"}
    for name, curve in found.items():
        assert curve.shape == RECALLS.shape
        assert (np.diff(curve) <= 0).all()
        assert 100 * curve.mean() == pytest.approx(expected[name], abs=1e-9)
    assert expected["never"] is None


def test_a_curve_by_hand() -> None:
    # Right, wrong, right of 4 objects: precision 1 up to recall 1/4, 2/3 up to 1/2, then nothing.
    curve = _interpolated(np.array([True, False, True]), 4)
    assert (curve[:26] == 1).all()
    assert curve[26:51] == pytest.approx(2 / 3)
    assert (curve[51:] == 0).all()
    assert (_interpolated(np.zeros(0, bool), 4) == 0).all()


def test_nothing_here_imports_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    pages = "about, board, compare, datasets, explore, record, submit"
    code = (
        f"import sys, leaderboard.app; from leaderboard.views import {pages}; "
        "assert not {'torch', 'mmengine', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
