"""The board: the paper's rows as printed, measured rows recomputed, the page without exceptions."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from leaderboard.data import measured_rows, reported_rows

PAGE = Path(__file__).parents[2] / "leaderboard" / "app.py"


def test_the_papers_table_is_complete() -> None:
    rows = reported_rows()
    # Table 2: 23 techniques on four datasets, two metrics each.
    assert len(rows) == 23 * 4
    assert rows[["map50", "map50_95"]].notna().all().all()
    row = rows[
        (rows.backbone == "csp_darknet") & (rows["mode"] == "agssp") & (rows.dataset == "casting_billet")
    ]
    assert row[["map50", "map50_95"]].to_numpy().tolist() == [[77.2, 44.9]]


def test_no_records_is_an_empty_table(tmp_path) -> None:
    assert measured_rows(tmp_path / "nowhere").rows.empty


def test_damaged_records_are_set_aside(tmp_path) -> None:
    folder = tmp_path / "mini-v1" / "x" / "y-123"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{")
    measured = measured_rows(tmp_path)
    assert measured.rows.empty
    assert "not a readable record" in measured.damaged[0].reason


@pytest.mark.slow
def test_the_page_shows_what_the_records_say(tmp_path, monkeypatch, two_seeds) -> None:
    from streamlit.testing.v1 import AppTest

    results, values = two_seeds
    monkeypatch.setenv("AGSSP_BENCH_RESULTS", str(results))
    page = AppTest.from_file(str(PAGE), default_timeout=60).run()
    assert not page.exception
    shown = page.dataframe[0].value
    assert shown["map50"].tolist() == pytest.approx([statistics.fmean(values)])
    assert shown["map50_error"].tolist() == pytest.approx([statistics.stdev(values) / 2**0.5])
    assert len(page.dataframe[1].value) == 92
    page.multiselect(key="reported-mode").select("agssp").run()
    assert set(page.dataframe[1].value["mode"]) == {"agssp"}
