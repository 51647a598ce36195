from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark.matrix import execution, notes
from benchmark.matrix.execution import execute
from benchmark.matrix.graph import Node
from benchmark.matrix.schedule import Outcome
from datasets_builders.errors import UserError


def node(kind: str = "cell", **spec) -> Node:
    return Node(f"{kind}-1", kind, "some work", (), spec)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, fresh_home: Path):
    """Puts a function in the place of what a cell does."""

    def put(function) -> None:
        monkeypatch.setitem(execution._WORK, "cell", function)

    return put


def test_the_log_has_what_libraries_and_programs_print(work, tmp_path: Path) -> None:
    def loud(spec):
        print("from Python")
        print("and its errors", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo from a program; echo its errors >&2"], check=True)
        return Outcome("done", key="k")

    work(loud)
    log = tmp_path / "logs" / "one.log"
    first = execute(node(results="r"), log)
    second = execute(node(results="r"), log)
    assert (first.status, first.key, first.log) == ("done", "k", str(log))
    assert first.seconds > 0
    text = log.read_text()
    for line in ("from Python", "and its errors", "from a program", "its errors"):
        assert text.count(f"{line}\n") >= 2, "an attempt is lost"
    assert second.status == "done"


def test_errors_are_outcomes(work, tmp_path: Path) -> None:
    def lacking(spec):
        raise UserError("There is no such thing. Get it.")

    def broken(spec):
        raise ZeroDivisionError("by zero")

    work(lacking)
    found = execute(node(results="r"), tmp_path / "a.log")
    assert (found.status, found.reason) == ("failed", "There is no such thing. Get it.")
    assert "Traceback" not in (tmp_path / "a.log").read_text()
    work(broken)
    found = execute(node(results="r"), tmp_path / "b.log")
    assert (found.status, found.reason) == ("failed", "ZeroDivisionError: by zero")
    assert "Traceback" in (tmp_path / "b.log").read_text()
    (tmp_path / "file").touch()
    found = execute(node(results="r"), tmp_path / "file" / "c.log")
    assert found.status == "failed"
    assert "cannot be written" in str(found.reason)


def test_errors_on_a_disk_that_is_nearly_full_say_so(work, fresh_home: Path, monkeypatch) -> None:
    def broken(spec):
        raise RuntimeError("unexpected pos 16161664 vs 16161560")  # torch's words for it

    work(broken)
    fresh_home.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=3 * 2**20))
    reason = str(execute(node(results="r")).reason)
    assert reason.startswith("RuntimeError: unexpected pos")
    assert f"3 MiB are free on the disk of {fresh_home}: make room" in reason


def test_notes_tell_what_is_there_and_believe_only_what_still_is(work, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    work(lambda spec: Outcome("done", key="k", record=str(record)))
    here, elsewhere = node(results="here"), node(results="elsewhere")
    assert not notes.there([here])
    execute(here)
    assert not notes.there([here])  # the record is gone
    record.touch()
    assert notes.there([here])
    assert not notes.there([elsewhere])
    work(lambda spec: Outcome("failed", "no"))
    execute(elsewhere)
    assert not notes.there([elsewhere])
    notes.write(node("backbone"), Outcome("done", key="0" * 64))
    assert not notes.there([node("backbone")])  # no such artifact


def test_data_and_weights_are_made_or_refused_with_the_reason(fresh_home: Path) -> None:
    toy = node("dataset", name="gc10_toy/mini", procedural=True, protocol="mock-v1")
    assert not notes.there([toy])
    assert execute(toy).status == "done"
    assert execute(toy).status == "found"
    assert notes.there([toy])
    corpus = node("corpus", name="corpus_synthetic/n4_k2_s0")
    assert [execute(corpus).status, execute(corpus).status] == ["done", "found"]
    assert notes.there([corpus])
    missing = execute(node("dataset", name="fd", procedural=False, protocol="paper-v1"))
    assert missing.status == "failed"
    assert "prepare fd --raw DIR" in str(missing.reason)
    assert execute(node("weights", unknown="Give your own.")).reason == "Give your own."
    assert execute(node("weights", spec="imagenet-lite0")).status == "found"
