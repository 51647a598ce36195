"""The board's table: deltas, layouts, filters and downloads, against the paper's printed numbers and by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import pandas as pd
import pytest

from benchmark.reported import PAPER
from leaderboard.data import ROW_COLUMNS, open_board
from leaderboard.table import COLUMNS, METRICS, by_dataset, filtered, to_csv, to_json, whole_table


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return whole_table(open_board(tmp_path_factory.mktemp("none")).rows)


def printed() -> dict[tuple[str, ...], float]:
    """The paper's numbers, read without the code under test."""
    with PAPER.open(encoding="utf-8", newline="") as file:
        names = ("table", "detector", "backbone", "method", "mode", "dataset", "metric")
        return {tuple(line[name] for name in names): float(line["value"]) for line in csv.DictReader(file)}


def only(rows: pd.DataFrame, **wanted: str) -> pd.Series:
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def measured(**changes: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(ROW_COLUMNS)
    return (
        row
        | {
            "row_id": "r",
            "trust": "measured",
            "protocol": "mini-v1",
            "track": "real",
            "backbone": "swin",
            "variant": "nano",
            "detector": "yolov8",
            "method": "cls",
            "mode": "agssp",
            "dataset": "neu_det",
            "seeds": (0, 1),
            "map50": 50.0,
            "map50_95": 20.0,
            "fingerprint": "f",
            "record_ids": ("a", "b"),
        }
        | changes
    )


def table_of(*rows: dict[str, object]) -> pd.DataFrame:
    return whole_table(pd.DataFrame(rows, columns=list(ROW_COLUMNS)).astype(ROW_COLUMNS))


def test_every_reported_number_stands_in_the_overview_as_printed(paper: pd.DataFrame) -> None:
    wide = by_dataset(paper, "map50")
    backbones = {"csp_darknet:s": "csp_darknet", "resnet:50": "resnet50", "swin:base": "swin_base"}
    datasets = {"gc10_det/mini": "gc10_mini", "casting_billet/mini50": "casting_billet_mini50"}
    numbers = printed()
    found = 0
    for line in wide.to_dict("records"):
        for dataset in set(paper["dataset"]):
            key = (line["detector"], backbones[line["backbone"]], line["method"], line["mode"])
            place = (datasets.get(dataset, dataset), "map50")
            values = [
                numbers[(t, *key, *place)]
                for t in ("table2", "table3", "fig6e")
                if (t, *key, *place) in numbers
            ]
            if values:
                found += 1
                assert line[dataset] == values[0]
            else:
                assert math.isnan(line[dataset])
    assert found == len(paper) == 112
    assert len(wide[wide["casting_billet"].notna() & wide["gc10_det"].notna()]) == 23  # Table 2


def test_deltas_are_to_imagenet_of_the_same_method(paper: pd.DataFrame) -> None:
    numbers = printed()
    for method in ("cls", "simmim"):
        row = only(paper, dataset="steel_pipe", backbone="swin:base", method=method, mode="agssp")
        key = ("table2", "yolov8", "swin_base", method)
        for metric in METRICS:
            expected = (
                numbers[(*key, "agssp", "steel_pipe", metric)]
                - numbers[(*key, "imagenet", "steel_pipe", metric)]
            )
            assert row[f"delta_{metric}"] == pytest.approx(expected, abs=1e-9)
        assert row["against"] == "imagenet"
    # Two ImageNet rows could be the baseline of scratch: then there is none.
    scratch = only(paper, dataset="steel_pipe", backbone="swin:base", mode="scratch")
    assert math.isnan(scratch["delta_map50"])
    assert scratch["against"] == ""


def test_deltas_are_to_scratch_where_there_is_no_imagenet_row_and_never_across_data_or_protocols() -> None:
    table = table_of(
        measured(row_id="a"),
        measured(row_id="b", mode="scratch", method="-", map50=30.0),
        measured(row_id="c", mode="scratch", method="-", map50=10.0, fingerprint="g"),
        measured(row_id="d", mode="imagenet", map50=40.0, protocol="paper-v1"),
    ).set_index("row_id")
    assert table.loc["a", ["delta_map50", "against"]].tolist() == [20.0, "scratch"]
    assert table.loc[["b", "c", "d"], "delta_map50"].isna().all()
    assert table.loc["a", "seeds"] == 2


def test_cost_of_reported_rows_is_table_6s(paper: pd.DataFrame) -> None:
    known = dict(list(paper[paper["detector"] == "yolov8"].groupby("backbone")))
    assert set(known["csp_darknet:s"]["parameters_m"]) == {11.1}
    assert set(known["swin:base"]["parameters_m"]) == {107.4}
    assert set(known["swin:base"]["fps"]) == {23.4}
    assert known["resnet:50"]["parameters_m"].isna().all()
    assert paper[paper["detector"] != "yolov8"]["parameters_m"].isna().all()


def test_two_versions_of_a_dataset_make_two_lines() -> None:
    wide = by_dataset(
        table_of(measured(row_id="a"), measured(row_id="b", fingerprint="g", map50=60.0)), "map50"
    )
    assert wide["neu_det"].tolist() == [50.0, 60.0]


def test_a_row_says_where_its_pretraining_met_its_own_images() -> None:
    sent = {"submission": "X", "submission_slug": "x"}
    rows = pd.DataFrame(
        [
            measured(row_id="sent", **sent),
            measured(row_id="elsewhere", dataset="gc10_det", **sent),
            measured(row_id="own", dataset="gc10_det/mini", corpus="corpus_x_sdd_gc10"),
            measured(row_id="clean", corpus="corpus_x_sdd_gc10"),
            measured(
                row_id="generated", dataset="steel_pipe_synthetic", corpus="corpus_synthetic/n2000_k9_s0"
            ),
            measured(row_id="plain"),
        ],
        columns=list(ROW_COLUMNS),
    )
    submissions = pd.DataFrame({"slug": ["x"], "contamination": ["fd: a reason; neu_det: seen"]})
    table = whole_table(rows.astype(ROW_COLUMNS), submissions)
    found = table.set_index("row_id")["contamination"]
    assert {name for name, text in found.items() if text} == {"sent", "own"}
    assert found["sent"] == "neu_det: seen"
    assert "gc10_cls224 holds images of the evaluation dataset" in found["own"]
    wide = by_dataset(table, "map50").set_index("submission")["contamination"]
    assert wide["X"] == "neu_det: seen"  # of a technique on several datasets


def test_filters_and_words_choose_rows(paper: pd.DataFrame) -> None:
    assert len(filtered(paper, {})) == len(paper)
    chosen = filtered(paper, {"mode": ["agssp", "agbp"], "dataset": ["fd"], "method": []})
    expected = [
        (row.mode, row.dataset)
        for row in paper.itertuples()
        if row.mode in ("agssp", "agbp") and row.dataset == "fd"
    ]
    assert list(zip(chosen["mode"], chosen["dataset"], strict=True)) == expected
    found = filtered(paper, {}, "SWIN simmim")
    assert len(found)
    assert set(found["method"]) == {"simmim"}
    assert filtered(paper, {}, "nothing.like(this").empty


def test_csv_reads_back_and_computes_nothing_in_a_spreadsheet(paper: pd.DataFrame) -> None:
    back = pd.read_csv(io.StringIO(to_csv(paper)), keep_default_na=False)
    assert list(back.columns) == COLUMNS
    assert back["map50"].tolist() == paper["map50"].tolist()
    assert back["delta_map50"].replace("", "nan").astype(float).tolist() == pytest.approx(
        paper["delta_map50"].tolist(), nan_ok=True
    )
    hostile = ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "\r=1", "-", "plain"]
    table = table_of(*[measured(row_id=str(n), submission=text) for n, text in enumerate(hostile)])
    cells = [line["submission"] for line in csv.DictReader(io.StringIO(to_csv(table), newline=""))]
    assert sorted(cells) == sorted(
        ["'=1+1", "'+1", "'-2+3", "'@SUM(A1)", "' =1", "' =1", "' =1", "-", "plain"]
    )


def test_json_has_null_and_no_nan(paper: pd.DataFrame) -> None:
    entries = json.loads(to_json(paper), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert [entry["map50"] for entry in entries] == paper["map50"].tolist()
    assert entries[0]["map50_error"] is None
