"""What the pages share: the board, its table and its records, each read once while nothing changes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from agssp.display import duration
from benchmark.rows import Row
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key
from leaderboard import RESULTS_VARIABLE, charts, look, scores
from leaderboard.data import Board, open_board
from leaderboard.table import whole_table

__all__ = [
    "board",
    "draw",
    "duration",
    "judgement",
    "known_judgement",
    "link",
    "row",
    "source",
    "table",
    "titles",
]

_FRESH = 20
"""Seconds for which the folder is not looked at again: a filter must not wait for ten thousand files."""
_MOST_JUDGED = 500
"""Orders that are kept: a visitor's search makes any number of them."""


def source() -> str:
    """Returns where the board's records come from."""
    return os.environ.get(RESULTS_VARIABLE, "results")


def board() -> Board:
    """Returns the board; where its source cannot be read, says so and ends the page."""
    try:
        return _board(source())
    except UserError as error:
        st.error(f"The records of this board cannot be read. {look.escape(str(error))}")
        st.stop()


@st.cache_resource(show_spinner="Reading records", ttl=_FRESH, max_entries=4)
def _board(where: str) -> Board:
    return open_board(where)


def table() -> pd.DataFrame:
    """Returns the board's table: measured and reported rows, with differences to their baselines."""
    found = board()
    return _table(found.state, found)


@st.cache_data(show_spinner=False, max_entries=4)
def _table(state: str, _board: Board) -> pd.DataFrame:
    return whole_table(_board.rows, _board.submissions)


def row(row_id: str) -> Row:
    """Returns a measured row with its records.

    Raises:
        UserError: There is no such row, or a record of it was damaged since.
    """
    found = board()
    return _row(found.state, row_id, found)


@st.cache_resource(show_spinner=False, max_entries=200)
def _row(state: str, row_id: str, _board: Board) -> Row:
    return _board.row(row_id)


def titles(rows: pd.DataFrame) -> list[str]:
    """Names rows for people; on one dataset under one protocol each differently."""
    plain = [
        (
            entry.submission
            or f"{look.model_label(entry.detector, entry.backbone, entry.method)} · {look.mode_label(entry.mode)}"
        )
        + (f" {look.CONTAMINATED}" if entry.contamination else "")
        for entry in rows.itertuples()
    ]
    places = list(zip(plain, rows["dataset"], rows["protocol"], strict=True))
    times = Counter(places)
    seen: Counter[tuple[str, ...]] = Counter()
    names = []
    for place, maps in zip(places, rows["maps"], strict=True):
        title = f"{place[0]} ({maps})" if times[place] > 1 and maps else place[0]
        seen[title, *place[1:]] += 1
        number = seen[title, *place[1:]]
        names.append(title if number == 1 else f"{title} #{number}")
    return names


def link(address: str, label: str, parameters: dict[str, str]) -> None:
    """Draws a link to another page of the board.

    Args:
        address: A key of `leaderboard.app.PAGES`.
        label: What it says.
        parameters: Of the address.
    """
    from leaderboard.app import PAGES, pages  # which imports the pages, which import this

    st.page_link(
        pages()[address], label=label, icon=f":material/{PAGES[address][2]}:", query_params=parameters
    )


def draw(chart: charts.Drawing, words: str) -> None:
    """Draws a chart as wide as there is room.

    Args:
        chart: Of `leaderboard.charts`.
        words: What a reader who does not see it hears.
    """
    st.altair_chart(chart, alt=words)


def known_judgement(ids: Sequence[str]) -> scores.Judgement | None:
    """Returns what the detections of rows say of their order where it takes no computing, else None."""
    if _judged_as(ids) not in _judged() and not all(scores.is_stored(row(entry)) for entry in ids):
        return None
    return judgement(ids)


def judgement(ids: Sequence[str], done: Callable[[int], object] = lambda number: None) -> scores.Judgement:
    """Returns what the detections of rows say of their order.

    Raises:
        UserError: As `leaderboard.scores.judge`.
    """
    kept, key = _judged(), _judged_as(ids)
    found = kept.get(key)
    if found is None:
        found = kept[key] = scores.judge([row(entry) for entry in ids], done)
        for oldest in list(kept)[:-_MOST_JUDGED]:
            kept.pop(oldest, None)
    return found


@st.cache_resource(show_spinner=False)
def _judged() -> dict[str, scores.Judgement]:
    """What was computed since the server began, for all visitors."""
    return {}


def _judged_as(ids: Sequence[str]) -> str:
    return content_key([board().state, list(ids)])
