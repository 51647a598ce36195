"""Kills a matrix at random moments, its driver or one of its workers, and compares with a run that nobody disturbed.

    python tests/performance/kill_matrix.py --kills 20

Says what was finished at each kill, whether anything finished was made again, and whether all records are equal in the
end: everything but times, machine and the count of resumptions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ONLY = "backbone=csp_darknet,mode=scratch,mode=industrial,mode=agssp"
LONGEST_GOODBYE = 30


def start(place: Path, only: str) -> subprocess.Popen[bytes]:
    """Starts a matrix whose cache and results are in one folder."""
    command = [sys.executable, "-m", "benchmark", "matrix", "table2", "--protocol", "mock", "--only", only]
    return subprocess.Popen(
        [*command, "--device", "cpu", "--results", str(place / "results")],
        env=os.environ | {"AGSSP_BENCH_HOME": str(place / "home")},
        stdout=subprocess.DEVNULL,
        stderr=(place / "log").open("ab"),
    )


def finished(place: Path) -> dict[str, int]:
    """Returns the time of writing of every finished stage and record, by path."""
    files = [*place.glob("home/artifacts/*/*/artifact.json"), *place.glob("results/*/*/[!.]*/record.json")]
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in files}


def changes(place: Path) -> int:
    """Returns a number that changes with what stages and cells write."""
    files = (
        path for part in ("artifacts", "unfinished", "runs") for path in (place / "home" / part).rglob("*")
    )
    total = 0
    for path in files:
        with contextlib.suppress(OSError):  # gone meanwhile
            total += path.stat().st_mtime_ns
    return total


def numbers(place: Path) -> dict[str, Any]:
    """Returns all that two records of the same cell must agree in, by the record's folder."""
    same = ("key", "inputs", "cell", "protocol", "dataset", "last", "best", "curve", "weights", "parameters")
    found = {}
    for path in place.glob("results/*/*/[!.]*/record.json"):
        record = json.loads(path.read_text())
        found[path.parent.name] = {name: record[name] for name in same} | {"trust": record["trust"]}
    return found


def workers_of(driver: int) -> list[psutil.Process]:
    """Returns a driver's worker processes."""
    try:
        children = psutil.Process(driver).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def disturb(process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kills the driver or one worker; returns which."""
    workers = workers_of(process.pid)
    if workers and chance.random() < 0.4:
        chance.choice(workers).kill()
        return "a worker"
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(workers, timeout=LONGEST_GOODBYE)
    if left:
        raise SystemExit(f"workers outlive their driver: {left}")
    return "the driver"


def wait_for_a_moment(
    process: subprocess.Popen[bytes], place: Path, chance: random.Random, length: float
) -> None:
    """Waits until a random moment: sometimes while the processes start, mostly while they work."""
    if chance.random() < 0.8:
        before = changes(place)
        while changes(place) == before and process.poll() is None:
            time.sleep(0.05)
    moment = time.monotonic() + chance.uniform(0, length / 6)
    while time.monotonic() < moment and process.poll() is None:
        time.sleep(0.01)


def main() -> None:
    """Reads the command line; leaves with 1 where something is not equal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", default=ONLY, help="Which cells of table2.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        began = time.monotonic()
        assert start(whole, options.only).wait() == 0
        length = time.monotonic() - began
        say(f"undisturbed: {len(numbers(whole))} records in {length:.0f} s")
        kills = rounds = 0
        while kills < options.kills:
            rounds += 1
            killed = Path(folder) / f"killed-{rounds}"
            killed.mkdir()
            seen: dict[str, int] = {}
            process = start(killed, options.only)
            while process.poll() is None and kills < options.kills:
                wait_for_a_moment(process, killed, chance, length)
                if process.poll() is None:
                    victim = disturb(process, chance)
                    kills += 1
                    seen = finished(killed) | seen  # the first time counts
                    say(f"kill {kills}: {victim}, {len(seen)} results finished")
                if process.poll() not in (None, 0):
                    process = start(killed, options.only)
            assert process.wait() == 0
            again = [name for name, moment in seen.items() if finished(killed).get(name) != moment]
            equal = numbers(killed) == numbers(whole)
            say(f"records {len(numbers(killed))}, equal: {equal}; finished results made again: {len(again)}")
            if not equal or again:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
