"""Charts over all rows: which rows a line joins, and gains over a baseline with their errors."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from test_table import measured, table_of

from leaderboard.table import deltas
from leaderboard.views.explore import gains_over, ladders, pareto_front


def row(mode: str, method: str = "cls", **changes: Any) -> dict[str, Any]:
    """A measured row under a name of its own."""
    name = "-".join(map(str, (mode, method, *changes.values())))
    return measured(row_id=name, mode=mode, method=method, **changes)


def lines_of(*rows: dict[str, Any]) -> dict[str, list[str]]:
    found = ladders(table_of(*rows))
    return {str(name): line["mode"].tolist() for name, line in found.groupby("line")}


def test_scratch_begins_the_lines_of_all_methods() -> None:
    found = lines_of(
        row("scratch", "-"), row("industrial"), row("agbp", maps="m"), row("industrial", "simmim")
    )
    assert found == {
        "Swin nano": ["scratch", "industrial", "agbp"],
        "Swin nano, SimMIM": ["scratch", "industrial"],
    }


def test_each_source_of_maps_has_a_line_and_no_line_has_a_step_twice() -> None:
    found = lines_of(
        row("scratch", "-"),
        row("industrial", corpus="c"),
        row("agbp", maps="kead:tiny", corpus="c"),
        row("agssp", maps="kead:tiny", corpus="c"),
        row("agssp", maps="oracle", corpus="c"),
    )
    assert found == {
        "Swin nano, kead:tiny": ["scratch", "industrial", "agbp", "agssp"],
        "Swin nano, oracle": ["scratch", "industrial", "agssp"],
    }


def test_what_nothing_tells_apart_stands_alone() -> None:
    found = lines_of(row("scratch", "-"), row("agssp", row_key="1"), row("agssp", row_key="2"))
    assert found == {"Swin nano": ["scratch", "agssp"], "Swin nano #2": ["agssp"]}


def test_versions_of_the_data_share_no_line() -> None:
    found = lines_of(row("scratch", "-"), row("agssp"), row("agssp", fingerprint="0123456789"))
    assert found == {"Swin nano, data f": ["scratch", "agssp"], "Swin nano, data 01234567": ["agssp"]}


def sized(mode: str, value: float, error: float, dataset: str, images: int, **changes: Any) -> dict[str, Any]:
    method = "-" if mode == "scratch" else "cls"
    return row(
        mode,
        method,
        dataset=dataset,
        fingerprint=dataset,
        map50=value,
        map50_error=error,
        train_images=images,
        **changes,
    )


def test_gains_over_a_baseline_with_the_error_of_both() -> None:
    table = table_of(
        sized("scratch", 20.0, 3.0, "neu_det", 1267),
        sized("agssp", 30.0, 4.0, "neu_det", 1267),
        sized("scratch", 5.0, 1.0, "neu_det/mini50", 50),
        sized("agssp", 25.0, math.nan, "neu_det/mini50", 50),
    )
    found = gains_over(table, "scratch", "map50").set_index("dataset")
    assert found["gain"].to_dict() == {"neu_det": 10.0, "neu_det/mini50": 20.0}
    assert found["images"].to_dict() == {"neu_det": 1267, "neu_det/mini50": 50}
    assert found["error"]["neu_det"] == 5.0  # of 3 and 4
    assert math.isnan(found["error"]["neu_det/mini50"])  # one seed
    assert gains_over(table, "imagenet", "map50").empty


def test_what_somebody_sent_is_no_baseline() -> None:
    sent = row("imagenet", map50=90.0, submission="Mine", submission_slug="mine")
    table = table_of(row("scratch", "-", map50=20.0), row("agssp", map50=30.0), sent)
    by_mode = table.set_index("mode")
    assert by_mode["against"].to_dict() == {"scratch": "", "agssp": "scratch", "imagenet": "scratch"}
    assert by_mode["delta_map50"]["agssp"] == 10.0
    assert by_mode["delta_map50"]["imagenet"] == 70.0
    assert set(deltas(table, "imagenet")["against"]) == {""}


@pytest.mark.parametrize(
    ("cost", "value", "front"),
    [
        ([1, 2, 3], [10, 20, 15], [True, True, False]),
        ([1, 1], [10, 20], [False, True]),
        ([1, 2], [10, 10], [True, False]),
        ([1, 1], [10, 10], [True, True]),
    ],
)
def test_the_front_is_what_nothing_beats(cost: list[float], value: list[float], front: list[bool]) -> None:
    assert pareto_front(pd.Series(cost), pd.Series(value)) == front
