"""`python -m leaderboard`: what it refuses, and how it hands over to the server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from streamlit.web import cli

from leaderboard import RESULTS_VARIABLE
from leaderboard import __main__ as module


@pytest.fixture
def handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "main", calls.append)
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(RESULTS_VARIABLE, "elsewhere")
    return calls


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["leaderboard", *arguments])
    module.main()


def test_a_folder_and_options_reach_the_server(
    handed_over: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(monkeypatch, str(tmp_path), "--server.port=9000")
    app = Path(module.__file__).with_name("app.py")
    assert handed_over == [["run", str(app), "--server.port=9000"]]
    assert os.environ[RESULTS_VARIABLE] == str(tmp_path)
    assert "0 records" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "Usage"),
        (["no/such"], 1, "no folder no/such"),
        (["--server.port=1", "extra"], 2, "Usage"),
    ],
)
def test_what_it_says_and_does_not_serve(
    arguments: list[str],
    code: int,
    words: str,
    handed_over: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == code
    said = capsys.readouterr()
    assert words in said.out + said.err
    assert handed_over == []


def test_a_first_page_that_fails_is_told_and_served_all_the_same(
    handed_over: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "app.py"
    broken.write_text("raise ValueError('a broken page')\n", encoding="utf-8")
    monkeypatch.setattr(module, "_APP", broken)
    # A drawn page becomes `__main__`, which new processes import.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    run(monkeypatch, str(tmp_path))
    assert "the first page ends in an error: a broken page" in capsys.readouterr().err
    assert len(handed_over) == 1
