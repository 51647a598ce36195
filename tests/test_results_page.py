"""`docs/results.md` shows the records of `results/` as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.analysis import analyse
from benchmark.rows import rows
from benchmark.tables import build, to_markdown
from datasets_builders.prepared import prepare

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.real_data
def test_the_table_is_the_report_of_the_records(raw_data: Path, fresh_home: Path) -> None:
    prepare("neu_det", raw=raw_data / "raw" / "neu_det")
    found = rows(ROOT / "results")
    assert found
    table = to_markdown(build(found, "scratch", analyse(found, "scratch").comparisons))
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert table.strip() in page, (
        "Put what `python -m benchmark report --format markdown --against scratch` prints into docs/results.md"
    )
