"""Whole matrices under protocol mock, from the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[3]
CSP = "backbone=csp_darknet,mode=scratch,mode=industrial,mode=agssp"
NETWORK = {"imagenet", "coco"}

pytestmark = pytest.mark.slow


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return subprocess.Popen(
        [sys.executable, "-m", "benchmark", "matrix", "table2", "--protocol", "mock", "--device", "cpu",
         "--json", "--results", str(place / "results"), *words],
        cwd=ROOT,
        env=os.environ | nowhere | {"AGSSP_BENCH_HOME": str(place / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    assert process.returncode in (0, 1), err[-3000:]
    return json.loads(out)


def numbers(place: Path) -> dict[str, Any]:
    """All that must be equal, by the record's folder, which has the key in its name."""
    same = ("key", "inputs", "last", "best", "curve", "weights")
    records = (json.loads(path.read_text()) for path in place.glob("results/*/*/[!.]*/record.json"))
    return {f"{record['cell']} {record['key']}": {name: record[name] for name in same} for record in records}


def stages(place: Path) -> dict[str, int]:
    found = [path.parent.parent.name for path in place.glob("home/artifacts/*/*/artifact.json")]
    return {kind: found.count(kind) for kind in sorted(set(found))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All of table 2, undisturbed."""
    place = tmp_path_factory.mktemp("whole")
    return place, finish(start(place))


def test_every_cell_of_table2_ends_in_a_record_or_one_reason(whole) -> None:
    place, outcome = whole
    assert len(outcome["cells"]) == 23 * 4
    for cell in outcome["cells"]:
        if cell["mode"] in NETWORK:
            assert cell["status"] == "skipped"
            assert "--weights" in cell["reason"]
        else:
            assert cell["status"] == "done"
            assert Path(cell["record"]).is_file()
    assert {entry["title"].split()[0] for entry in outcome["failed"]} == {"weights"}
    assert all(Path(entry["log"]).is_file() and entry["reason"] for entry in outcome["failed"])
    # What test_matrix_graph counts by hand, and no more.
    assert stages(place) == {"backbone": 10, "boxes": 1, "detector": 4, "maps": 1}
    assert not list((place / "home" / "unfinished").glob("*/[!.]*"))


def test_the_same_command_finds_everything(whole) -> None:
    place, _ = whole
    before = numbers(place)
    again = finish(start(place, "--only", CSP))
    assert {cell["status"] for cell in again["cells"]} == {"found"}
    assert all(set(counts) == {"found"} for counts in again["executed"].values())
    assert numbers(place) == before
    planned = finish(start(place, "--only", CSP, "--dry-run"))
    assert {cell["status"] for cell in planned["cells"]} == {"there"}
    assert all(count["planned"] == count["there"] for count in planned["nodes"].values())


def test_killed_at_any_moment_and_by_two_drivers_the_records_are_the_same(whole, tmp_path: Path) -> None:
    chance = random.Random(6)
    for _ in range(3):
        process = start(tmp_path, "--only", CSP)
        enough = time.monotonic() + chance.uniform(3, 25)
        while time.monotonic() < enough and process.poll() is None:
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children() if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not psutil.wait_procs(workers, timeout=60)[1], "workers outlive their driver"
    # Two drivers at once on one store.
    first, second = start(tmp_path, "--only", CSP), start(tmp_path, "--only", CSP)
    outcomes = [finish(first), finish(second)]
    for outcome in outcomes:
        assert {cell["status"] for cell in outcome["cells"]} <= {"done", "found"}
    made = [
        sum(outcome["executed"][kind].get("done", 0) for outcome in outcomes)
        for kind in ("maps", "boxes", "backbone", "detector", "cell")
    ]
    assert all(count <= most for count, most in zip(made, (1, 1, 2, 1, 12), strict=True))
    assert stages(tmp_path) == {"backbone": 2, "boxes": 1, "detector": 1, "maps": 1}
    wanted = {name: values for name, values in numbers(whole[0]).items() if name in numbers(tmp_path)}
    assert len(wanted) == 12
    assert numbers(tmp_path) == wanted
