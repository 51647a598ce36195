"""What the ranking charts draw."""

from __future__ import annotations

from test_table import measured, table_of

from leaderboard.views.ranks import ranked


def test_rows_of_two_protocols_have_names_of_their_own() -> None:
    rows = table_of(
        measured(row_id="a", map50=50.0),
        measured(row_id="b", map50=60.0, protocol="paper-v1"),
        measured(row_id="c", map50=40.0, mode="scratch"),
    )
    assert ranked(rows, "map50")["label"].tolist() == [
        "Swin nano · AGSSP, paper-v1",
        "Swin nano · AGSSP, mini-v1",
        "Swin nano · Scratch",
    ]
