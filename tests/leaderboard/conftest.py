"""Records to show: two seeds of one cell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmark"))


@pytest.fixture
def two_seeds(tmp_path: Path) -> tuple[Path, list[float]]:
    """A results folder with one cell at two seeds, and their mAP@.5."""
    from test_records import GOOD, POOR, make_record

    from benchmark.records import write_record

    made = [make_record(GOOD, GOOD, seed=0), make_record(POOR, POOR, seed=1)]
    for record, detections in zip(made, (GOOD, POOR), strict=True):
        write_record(record, detections, detections, tmp_path / "results")
    return tmp_path / "results", [record.last.metrics.map50 for record in made]
