"""One cell with all its stages, executed in this process: what the tests of faults run, in places that have faults.

    python one_cell.py PLACE            # executes every node once, and prints what became of each, as JSON
    python one_cell.py PLACE flip       # and again for every kind of file that a bit is flipped in
    python one_cell.py PLACE disk       # on a disk that is too small at first and read-only in the end

PLACE is a new folder; the cache and the records lie in it, and are deleted again and again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark import protocol
from benchmark.cells import Cell
from benchmark.matrix.execution import execute
from benchmark.matrix.graph import Graph, Task, build
from benchmark.matrix.schedule import GOOD, Schedule
from benchmark.modes import Choice
from datasets_builders import prepared, storage
from datasets_builders.corpus import store

CELL = Cell("csp_darknet", "n", "cls", "agssp", "yolov8", "gc10_toy/mini", 0)
CHOICE = Choice("agssp", init="none", maps="random", corpus="corpus_synthetic/n12_k2_s0")
MIB = 2**20


def graph(results: Path) -> Graph:
    return build([Task(CELL, CHOICE)], protocol.load("mock-v1"), device="cpu", results=results)


def executed(results: Path) -> dict[str, Any]:
    """Executes what is not there yet; returns status and reason of each kind of node."""
    found: dict[str, Any] = {}
    schedule = Schedule(graph(results))
    while not schedule.finished:
        node = schedule.take()
        assert node is not None
        outcome = execute(node, storage.home() / "logs" / f"{node.kind}.log")
        for event in schedule.finish(node.id, outcome):
            assert event.outcome is not None
            found[event.node.kind] = {"status": event.outcome.status, "reason": event.outcome.reason}
    return found


def numbers(results: Path) -> list[Any]:
    """Returns all that two records of the cell must agree in, of every record there is."""
    same = ("key", "inputs", "last", "best", "curve", "weights")
    records = [json.loads(path.read_text()) for path in sorted(results.glob("*/*/[!.]*/record.json"))]
    return [{name: record[name] for name in same} for record in records]


def good(found: dict[str, Any]) -> bool:
    return all(one["status"] in GOOD for one in found.values())


def flip(path: Path, bit: int) -> None:
    """Changes one bit in the middle of a file, as a disk does: size and times stay."""
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def follow(reasons: list[str], damaged: Path) -> bool:
    """Does what errors say of a damaged file; returns whether they say it."""
    for reason in reasons:
        if removal := re.search(r"Remove (?:the folder )?(/\S+?)(?:;| and )", reason):
            assert damaged.is_relative_to(removal[1])
            shutil.rmtree(removal[1])
        elif repair := re.search(r"python -m (datasets_builders prepare .*)", reason):
            subprocess.run([sys.executable, "-m", *shlex.split(repair[1])], check=True, stdout=sys.stderr)
        else:
            return False
    return bool(reasons)


FLIPPED = {
    "datasets/*/train*.arrow": ("runs",),
    "corpora/*/*/*.parquet": ("artifacts", "unfinished", "runs"),
    "corpora/*/*/arrow/*.arrow": ("artifacts", "unfinished", "runs"),
    "artifacts/maps/*/maps/data/*.parquet": ("artifacts/backbone", "artifacts/detector", "runs"),
    "artifacts/boxes/*/boxes/*.parquet": ("artifacts/detector", "runs"),
    "artifacts/backbone/*/weights.safetensors": ("artifacts/detector", "runs"),
    "artifacts/detector/*/weights.safetensors": ("runs",),
    "artifacts/detector/*/artifact.json": ("runs",),
}
"""A file of each kind that others are made from, and what has to go so that it is read again."""


def flipped(home: Path, results: Path) -> Iterator[dict[str, Any]]:
    """Flips a bit of one file after the other, then does what the error says."""
    whole = home.with_name("whole")
    shutil.copytree(home, whole)
    for number, (pattern, gone) in enumerate(FLIPPED.items()):
        shutil.rmtree(home)
        shutil.rmtree(results, ignore_errors=True)  # there is none after an error
        shutil.copytree(whole, home)
        for name in gone:
            shutil.rmtree(home / name)
        (file,) = home.glob(pattern)
        flip(file, number % 8)
        for checked in (prepared._checked, store._checked):
            checked.clear()  # as in another process
        found = executed(results)
        step = {"file": pattern, "found": found, "numbers": numbers(results)}
        if follow([str(one["reason"]) for one in found.values() if one["status"] == "failed"], file):
            step |= {"after": executed(results), "numbers after": numbers(results)}
        yield step


def disk(home: Path) -> Iterator[dict[str, Any]]:
    """Executes on a full disk, makes it larger, and so on until the cell is done; then on a read-only one."""

    def mount(*words: str) -> None:
        subprocess.run(["mount", *words, str(home)], check=True)

    results, size = home / "results", MIB
    home.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "none")
    while True:
        step = {"bytes": size, "found": executed(results), "numbers": numbers(results)}
        yield step
        if good(step["found"]):
            break
        size *= 2
        mount("-o", f"remount,size={size}")
    for folder in (home / "runs", home / "artifacts" / "detector", results):
        shutil.rmtree(folder)
    # A second mount over the first: libraries hold files of the first open for writing.
    mount("--bind", str(home))
    mount("-o", "remount,bind,ro")
    yield {"bytes": 0, "found": executed(results), "numbers": numbers(results)}
    subprocess.run(["umount", str(home)], check=True)
    yield {"bytes": size, "found": executed(results), "numbers": numbers(results)}


def main() -> None:
    place, ways = Path(sys.argv[1]), sys.argv[2:]
    place.mkdir()  # nobody's folder yet: what lies in it is deleted
    home, results = place / "home", place / "results"
    os.environ[storage.HOME_VARIABLE] = str(home)
    if ways == ["disk"]:
        steps = list(disk(home))
    else:
        steps = [{"found": executed(results), "numbers": numbers(results)}]
        steps += flipped(home, results) if ways else []
    print(json.dumps(steps))


if __name__ == "__main__":
    main()
