from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from datasets_builders import cli, registry


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["datasets_builders", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def test_list_shows_every_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "classes", "images", "boxes", "licence", "origin", "ready"]
    assert [line.split()[0] for line in lines[1 : 1 + len(registry.names())]] == registry.names()
    assert lines[1].split() == ["neu_det", "6", "1800", "4189", "not", "stated", "raw", "no"]


def test_list_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], any_count: None, raw_folder: Path
) -> None:
    def facts() -> dict[str, dict]:
        assert run(monkeypatch, "list", "--json") == 0
        return {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}

    before = facts()
    assert before["neu_det"] | {"ready": None, "images": None} == before["neu_det"] | {
        "ready": None,
        "images": None,
        "boxes": None,
        "origin": "raw",
        "masks": "binary",
        "licence": "not stated",
    }
    assert before["gc10_synthetic"]["splits"].keys() == {"train", "validation"}
    assert run(monkeypatch, "prepare", "neu_det", "--raw", str(raw_folder)) == 0
    said = capsys.readouterr().out
    assert "neu_det: built" in said
    after = facts()
    assert (after["neu_det"]["images"], after["neu_det"]["boxes"], after["neu_det"]["ready"]) == (
        36,
        72,
        True,
    )
    assert after["neu_det/mini50"]["splits"]["train"] == 8
    assert after["neu_det/mini50"]["boxes"] < 72
    assert Path(after["neu_det"]["folder"]).is_dir()


def test_prepare_prints_expected_and_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], any_count: None, raw_folder: Path
) -> None:
    assert run(monkeypatch, "prepare", "neu_det/mini50", "--raw", str(raw_folder)) == 0
    assert run(monkeypatch, "prepare", "neu_det") == 0
    said = capsys.readouterr().out
    assert "neu_det: was ready" in said
    rows = [line.replace("│", " ").split() for line in said.splitlines() if "│" in line]
    assert ["images", "36"] in rows
    assert ["scratches", "12"] in rows
    assert "mini50: train 8, same validation" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prepare", "neudet"], "Did you mean 'neu_det'?"),
        (["show", "gc10_synthetik"], "Did you mean 'gc10_synthetic'?"),
        (["prepare", "neu_det"], "prepare neu_det --raw DIR"),
        (["prepare", "neu_det", "--raw", "/no/such/folder"], "there is no folder /no/such/folder"),
        (["prepare", "neu_det", "gc10_synthetic", "--raw", "."], "one by one"),
        (["show", "neu_det", "--count", "0"], "--count"),
        (["shove"], "No such command"),
    ],
)
def test_mistakes_end_with_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_faults_reach_the_terminal_without_traceback(raw_folder: Path, python: str, fresh_home: Path) -> None:
    (raw_folder / "IMAGES" / "patches_1.jpg").unlink()
    command = [python, "-m", "datasets_builders", "prepare", "neu_det", "--raw", str(raw_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: neu_det: 1 problem(s) in ")
    assert "annotation without image: ANNOTATIONS/patches_1.xml" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (fresh_home / "datasets" / "neu_det").exists()


def test_show_writes_a_page(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    any_count: None,
    raw_folder: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "prepare", "neu_det", "--raw", str(raw_folder))
    assert run(monkeypatch, "show", "neu_det/mini50", "--count", "5") == 0
    assert "wrote neu_det-mini50-train.png" in capsys.readouterr().out
    with Image.open(tmp_path / "neu_det-mini50-train.png") as sheet:
        assert sheet.format == "PNG"
    one, two, three = tmp_path / "a" / "1.png", tmp_path / "2.png", tmp_path / "3.png"
    for path, seed in ((one, "0"), (two, "0"), (three, "1")):
        arguments = ["show", "neu_det", "--out", str(path), "--seed", seed, "--split", "validation"]
        assert run(monkeypatch, *arguments, "--count", "4") == 0
    assert one.read_bytes() == two.read_bytes() != three.read_bytes()
    (tmp_path / "file").touch()
    assert run(monkeypatch, "show", "neu_det", "--out", str(tmp_path / "file" / "x.png")) == 2
    assert "Choose another with --out" in capsys.readouterr().err
