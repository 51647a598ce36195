"""The artifact store: made once, whole or not at all, resumed after a kill, safe against damage."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

from baselines import artifacts
from baselines.artifacts import Made, find, find_by_key, obtain
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

INPUTS = {"stage": "maps", "version": 1, "seed": 0}


def write(text: str):
    def make(folder: Path) -> Made:
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / "part.txt").write_text(text)
        return Made({"rows": len(text)})

    return make


def test_made_once_then_found(fresh_home) -> None:
    first = obtain("maps", INPUTS, write("abc"))
    assert first.manifest.summary == {"rows": 3}
    assert first.key == content_key(INPUTS)
    assert first.file("data/part.txt").read_text() == "abc"

    def never(folder: Path) -> Made:
        raise AssertionError("made again")

    again = obtain("maps", INPUTS, never)
    assert again == first
    assert find_by_key(first.key[:8]) == first
    assert obtain("maps", INPUTS | {"seed": 1}, write("x")).key != first.key


def test_a_disk_that_is_full_at_the_end_keeps_the_work(fresh_home, monkeypatch) -> None:
    def full(path: Path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.storage, "atomic_file", full)
        with pytest.raises(UserError, match=r"No space left on device.*the same command goes on"):
            obtain("maps", INPUTS, write("abc"))
    assert find("maps", content_key(INPUTS)) is None

    def goes_on(folder: Path) -> Made:
        assert (folder / "data" / "part.txt").read_text() == "abc"
        return Made({})

    assert obtain("maps", INPUTS, goes_on).file("data/part.txt").read_text() == "abc"


def test_a_failure_leaves_no_artifact_and_keeps_the_work(fresh_home) -> None:
    def fails(folder: Path) -> Made:
        (folder / "half").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        obtain("maps", INPUTS, fails)
    assert find("maps", content_key(INPUTS)) is None

    def goes_on(folder: Path) -> Made:
        assert (folder / "half").read_text() == "half"
        (folder / "half").rename(folder / "whole")
        return Made({}, seconds=12.5)

    done = obtain("maps", INPUTS, goes_on)
    assert list(done.manifest.files) == ["whole"]
    assert done.manifest.seconds == 12.5


def test_locks_and_leftovers_of_killed_calls_are_no_part_of_it(fresh_home) -> None:
    def make(folder: Path) -> Made:
        (folder / ".progress.pt.17-0123abcd.tmp").write_bytes(bytes(1000))
        (folder / ".maps.lock").touch()
        (folder / ".maps.work" / "parts").mkdir(parents=True)
        return write("abc")(folder)

    done = obtain("maps", INPUTS, make)
    assert list(done.manifest.files) == ["data/part.txt"]
    assert {path.name for path in done.folder.iterdir()} == {"data", artifacts.MANIFEST}


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "other inputs"])
def test_damage_is_noticed_and_mended(fresh_home, caplog, damage) -> None:
    done = obtain("maps", INPUTS, write("abcdef"))
    part, manifest = done.folder / "data" / "part.txt", done.folder / artifacts.MANIFEST
    if damage == "cut":
        part.write_text("abc")
    elif damage == "gone":
        part.unlink()
    elif damage == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:40])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"inputs": {"seed": 7}}))
    assert find("maps", done.key) is None
    assert "damaged" in caplog.text
    assert obtain("maps", INPUTS, write("abcdef")).file("data/part.txt").read_text() == "abcdef"


def test_a_changed_file_of_equal_size_is_not_handed_out(fresh_home) -> None:
    done = obtain("maps", INPUTS, write("abc"))
    (done.folder / "data" / "part.txt").write_text("abd")
    with pytest.raises(UserError, match="damaged"):
        done.file("data/part.txt")


@pytest.mark.parametrize(("kind", "key"), [("../x", "0" * 64), ("maps", "../../x"), ("maps", "abc")])
def test_names_stay_in_the_store(fresh_home, kind, key) -> None:
    with pytest.raises(ValueError, match="no artifact"):
        artifacts.artifact_folder(kind, key)


def test_unknown_and_ambiguous_keys(fresh_home) -> None:
    with pytest.raises(UserError, match="No artifacts"):
        find_by_key("0" * 8)
    with pytest.raises(UserError, match="hexadecimal"):
        find_by_key("../..")


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from baselines.artifacts import Made, obtain

def make(folder):
    (folder / "tries").open("a").write("x")
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    Path(sys.argv[2]).open("a").write("made ")
    return Made({})

print(obtain("maps", {"stage": "maps"}, make).manifest.files)
"""


def run(python: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-c", textwrap.dedent(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )


def test_a_killed_process_leaves_neither_lock_nor_artifact(fresh_home, tmp_path, python) -> None:
    killed = run(python, "die", str(tmp_path / "log"))
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert find("maps", content_key({"stage": "maps"})) is None
    done = run(python, "work", str(tmp_path / "log"))
    _, errors = done.communicate(timeout=60)
    assert done.returncode == 0, errors
    found = find("maps", content_key({"stage": "maps"}))
    assert found is not None
    assert found.file("tries").read_text() == "xx"


def test_two_processes_make_it_once(fresh_home, tmp_path, python) -> None:
    both = [run(python, "work", str(tmp_path / "log")) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert (tmp_path / "log").read_text() == "made "
