"""The pages without a browser: what they show of a folder of records, good, damaged, hostile or empty."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmark"))

from test_compare import store_row

from leaderboard import RESULTS_VARIABLE, session
from leaderboard.app import PAGES

pytestmark = pytest.mark.slow

# `AppTest` opens the first page alone: the others are drawn by their functions, with all of them known for links.
SCRIPT = """
import streamlit
from leaderboard import app, look
streamlit.set_page_config(layout="wide")
look.style()
streamlit.navigation(list(app.pages().values()), position="hidden")
app.PAGES["{address}"][0]()
"""
Open = Callable[..., AppTest]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path / "results"))
    session._board.clear()
    return tmp_path / "results"


@pytest.fixture
def open_page() -> Open:
    def open_page(address: str, **parameters: str) -> AppTest:
        page = AppTest.from_string(SCRIPT.format(address=address), default_timeout=120)
        for name, value in parameters.items():
            page.query_params[name] = value
        page.run()
        assert not page.exception, page.exception[0].value
        return page

    return open_page


def words(page: AppTest) -> str:
    """All that stands on the page as text."""
    kinds = (page.markdown, page.caption, page.info, page.warning, page.error, page.subheader, page.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


@pytest.mark.parametrize("address", list(PAGES))
def test_every_page_has_something_to_say_without_any_record(
    address: str, results: Path, open_page: Open
) -> None:
    page = open_page(address)
    assert page.title[0].value
    assert not page.error


def test_the_board_shows_the_papers_rows_and_measured_ones(results: Path, open_page: Open) -> None:
    store_row(results, "agssp", 0.9)
    store_row(results, "imagenet", 0.5)
    page = open_page("leaderboard")
    shown = page.dataframe[0].value
    assert len(shown) == 29 + 2
    assert {"◌", "●"} == set(shown.iloc[:, 0])
    assert shown["Steel Pipe"].notna().sum() == 23 + 2


def test_filters_and_their_address(results: Path, open_page: Open) -> None:
    page = open_page("leaderboard", mode="agssp")
    shown = page.dataframe[0].value
    assert set(shown["mode"]) == {"AGSSP"}
    assert page.multiselect(key="mode").value == ["agssp"]
    page.multiselect(key="detector").select("dino").run()
    assert set(page.dataframe[0].value["model"]) == {"DINO Swin base, SimMIM"}
    page.text_input(key="search").set_value("nothing like it").run()
    assert "No row fits" in words(page)
    page.button[0].click().run()
    assert len(page.dataframe[0].value) == 29


def test_one_dataset_is_ranked_and_says_why_there_are_no_intervals(results: Path, open_page: Open) -> None:
    for mode, found in (("scratch", 0.3), ("imagenet", 0.5), ("agssp", 0.9)):
        store_row(results, mode, found)
    page = open_page("leaderboard", show="One dataset", on="steel_pipe")
    ranked, reported = (frame.value for frame in page.dataframe)
    assert ranked["mAP@.5"].is_monotonic_decreasing
    assert ranked["#"].tolist() == [1, 2, 3]
    assert ranked["±"].notna().all()
    assert len(reported) == 23
    assert "±" not in reported
    assert "not on this machine" in words(page)


def test_a_record_shows_everything_and_how_to_make_it_again(results: Path, open_page: Open) -> None:
    store_row(results, "agssp", 0.9)
    table = open_page("leaderboard") and session.table()
    row = table[table["trust"] == "measured"].iloc[0]
    page = open_page("record", row=row["row_id"])
    text = words(page)
    assert "measured" in text
    assert "python -m benchmark verify" in text
    tables = [frame.value for frame in page.dataframe]
    assert any("AP@.5" in frame and len(frame) == 2 for frame in tables)
    assert any("key" in frame and len(frame) == 3 for frame in tables)


def test_a_reported_row_says_that_nothing_can_be_recomputed(results: Path, open_page: Open) -> None:
    table = open_page("leaderboard") and session.table()
    page = open_page("record", row=table["row_id"].iloc[0])
    assert "left no detections" in words(page)
    assert "--protocol paper-v1" in words(page)


def test_an_address_of_a_row_that_is_gone_is_said_so(results: Path, open_page: Open) -> None:
    page = open_page("record", row="<b>gone</b>")
    assert "no row" in page.warning[0].value
    assert "\\<b\\>" in page.warning[0].value


def test_rows_on_data_that_is_elsewhere_are_compared_by_their_numbers_alone(
    results: Path, open_page: Open
) -> None:
    store_row(results, "agssp", 0.9)
    store_row(results, "imagenet", 0.5)
    page = open_page("compare")
    assert "prepare steel_pipe" in words(page).replace("\\", "")
    assert page.dataframe[0].value["mAP@.5"].is_monotonic_decreasing
    assert len(page.multiselect[0].value) == 2


def test_damaged_files_are_listed_with_their_reason_and_break_nothing(results: Path, open_page: Open) -> None:
    store_row(results, "agssp", 0.9, seeds=(0,))
    for name, content in {
        "cut": "{",
        "bomb": "[" * 100_000,
        "html": '{"<script>": 1}',
        "nan": '{"a": NaN}',
    }.items():
        folder = results / "mini-v1" / "steel_pipe" / f"{name}-0123456789ab"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(content)
    for address in ("compare", "record"):
        open_page(address)
    page = open_page("leaderboard")
    set_aside = page.dataframe[-1].value
    assert len(set_aside) == 4
    assert set_aside["reason"].str.len().min() > 10


@pytest.mark.parametrize("topic", ["Ladder", "Cost", "Few images", "Anomaly maps", "Ablations"])
def test_every_topic_is_drawn(topic: str, results: Path, open_page: Open) -> None:
    store_row(results, "agssp", 0.9)
    store_row(results, "imagenet", 0.5)
    assert open_page("explore", topic=topic).get("vega_lite_chart") or open_page("explore", topic=topic).get(
        "arrow_vega_lite_chart"
    )


def test_no_picture_of_a_dataset_whose_licence_allows_none(results: Path, open_page: Open) -> None:
    page = open_page("datasets", kind="Photographs")
    assert not page.get("imgs")
    assert words(page).count("no licence that allows copies") >= 5


def test_the_paper_is_marked_wherever_it_stands(results: Path, open_page: Open) -> None:
    for address, parameters in (("leaderboard", {}), ("explore", {}), ("explore", {"topic": "Ablations"})):
        assert "reported" in words(open_page(address, **parameters)).lower()
