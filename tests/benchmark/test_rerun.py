"""Finetuning again: with what, with which seeds, and where the outcome is written. The training itself is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_records import answers, make_record
from typer.testing import CliRunner

from benchmark import run
from benchmark.attestations import Finding
from benchmark.cli import app
from benchmark.record_schema import Record
from benchmark.records import read_record, write_record
from benchmark.rerun import rerun
from datasets_builders.errors import UserError
from datasets_builders.storage import file_sha256


def store(results: Path, noise: dict[int, float], **changes: Any) -> list[Path]:
    """Writes records of one row, by seed."""
    paths = []
    for seed, value in noise.items():
        detections = answers(value, seed)
        record = make_record(detections, detections, seed=seed, **changes)
        paths.append(write_record(record, detections, detections, results))
    return paths


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is asked to be run; `noise` decides how good the new seeds are."""
    said: dict[str, Any] = {"noise": {0: 1.0, 1: 2.0, 2: 1.4}, "status": "recorded"}

    def run_cells(**how: Any) -> dict[str, Any]:
        said.update(how)
        paths = store(how["results"], {seed: said["noise"][seed] for seed in how["seeds"]})
        return {
            "cells": [{"status": said["status"], "record": str(p), "reason": "it diverged"} for p in paths]
        }

    monkeypatch.setattr(run, "run_cells", run_cells)
    return said


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    return path


def with_weights(weights: Path, source: str) -> dict[str, Any]:
    """Changes that give a record these weights."""
    report = make_record().weights
    assert report is not None
    return {"weights": report.model_copy(update={"source": source, "sha256": file_sha256(weights)})}


def test_all_seeds_of_the_row_are_run_again(
    tmp_path: Path, asked: dict[str, Any], fresh_home: Path, weights: Path
) -> None:
    results = tmp_path / "results"
    changes = with_weights(weights, "w.safetensors")
    paths = store(results, {0: 1.0, 1: 2.0, 2: 1.4}, **changes)
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    (found,) = rerun(paths[1].parent, None, weights, "cpu")
    assert found.attestation.finding is Finding.REPRODUCED
    assert found.path.is_relative_to(results / "attestations")
    first: Record = read_record(paths[0])
    assert (asked["seeds"], asked["datasets"], asked["protocol_name"]) == (
        [0, 1, 2],
        [first.cell.dataset],
        "mini-v1",
    )
    assert asked["backbone"] == f"{first.cell.backbone}:{first.cell.variant}"
    choice = asked["choice"]
    assert (choice.mode, choice.method, choice.weights) == ("custom", first.cell.method, str(weights))
    assert not asked["results"].is_relative_to(results)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(("noise", "code", "word"), [(1.0, 0, "reproduced"), (30.0, 1, "different")])
def test_the_command_says_and_returns_what_was_found(
    tmp_path: Path, asked: dict[str, Any], fresh_home: Path, weights: Path, noise: float, code: int, word: str
) -> None:
    paths = store(
        tmp_path / "results", {0: 1.0, 1: 2.0}, **with_weights(weights, "hub://a/b@1/w.safetensors")
    )
    asked["noise"] = {0: noise, 1: noise + 1}
    done = CliRunner().invoke(
        app, ["verify", "--rerun", str(paths[0]), "--results", str(tmp_path / "board"), "--device", "cpu"]
    )
    assert done.exit_code == code, done.output
    assert done.output.startswith(f"{word}: swin-nano_simmim_agbp_yolov8 on neu_det/mini50")
    assert asked["choice"].weights == "hub://a/b@1/w.safetensors"
    assert len(list((tmp_path / "board" / "attestations").iterdir())) == 1


def test_one_seed_that_differs_is_undecided(
    tmp_path: Path, asked: dict[str, Any], fresh_home: Path, weights: Path
) -> None:
    (path,) = store(tmp_path / "results", {0: 1.0}, **with_weights(weights, "artifact:" + "0" * 64))
    asked["noise"] = {0: 1.1}
    done = CliRunner().invoke(app, ["verify", "--rerun", str(path)])
    assert done.exit_code == 2
    assert done.output.startswith("undecided: ")


def test_what_cannot_be_run_again(
    tmp_path: Path, asked: dict[str, Any], fresh_home: Path, weights: Path
) -> None:
    (path,) = store(tmp_path / "results", {0: 1.0}, **with_weights(weights, "mine.pth"))
    with pytest.raises(UserError, match=r"'mine.pth': give it with --weights FILE"):
        rerun(path, None, None, "cpu")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other")
    with pytest.raises(UserError, match="is not the weights of the record"):
        rerun(path, None, other, "cpu")
    asked["status"] = "failed"
    with pytest.raises(UserError, match="A cell failed: it diverged"):
        rerun(path, None, weights, "cpu")
    assert not (tmp_path / "results" / "attestations").exists()
    with pytest.raises(UserError, match="No record"):
        rerun(tmp_path / "nothing", None, None, "cpu")
    alone = tmp_path / "record.json"
    alone.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"lies in no results folder: there it would be mini-v1/"):
        rerun(alone, None, weights, "cpu")


def test_an_attestation_is_never_written_into_a_submission(
    tmp_path: Path, asked: dict[str, Any], fresh_home: Path, weights: Path
) -> None:
    sent = tmp_path / "submissions" / "x"
    (path,) = store(sent / "records", {0: 1.0}, **with_weights(weights, "w.safetensors"))
    (sent / "submission.json").touch()
    with pytest.raises(UserError, match="belongs to a submission"):
        rerun(path, tmp_path / "board", weights, "cpu")
