"""What Ray costs on one machine: the same matrix by both engines, on the same cores, each from an empty cache.

    python tests/performance/bench_ray.py --only backbone=csp_darknet --limit 8

Prints seconds of each whole command (Ray's with starting and ending a cluster), their ratio, and whether the records
hold equal numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(engine: str, options: list[str], home: Path, results: Path) -> tuple[float, int]:
    """Returns seconds of the command, and the number of its cells."""
    command = [sys.executable, "-m", "benchmark", "matrix", *options, "--device", "cpu", "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--engine", engine, "--results", str(results)],
        env=os.environ | {"AGSSP_BENCH_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=False,
    )
    seconds = time.perf_counter() - began
    outcome = json.loads(done.stdout)
    if outcome["failed"]:
        sys.exit(f"{engine}: {outcome['failed']}")
    return seconds, len(outcome["cells"])


def numbers(results: Path) -> dict[str, Any]:
    """Returns what records of one key must agree in."""
    found = {}
    for path in results.rglob("record.json"):
        record = json.loads(path.read_text())
        found[record["key"]] = {name: record[name] for name in ("inputs", "last", "best", "curve")}
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--only", default="backbone=csp_darknet")
    parser.add_argument("--limit", default="8")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--address", help="of a cluster that runs already, so that its start is not measured")
    asked = parser.parse_args()
    options = [asked.preset, "--protocol", "mock", "--only", asked.only, "--limit", asked.limit]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for turn in range(asked.rounds):
            seconds = {}
            for engine in ("local", "ray"):
                home = place / f"{engine}{turn}"
                there = ["--address", asked.address] if engine == "ray" and asked.address else []
                seconds[engine], cells = run(engine, [*options, *there], home, home / "results")
            equal = numbers(place / f"local{turn}" / "results") == numbers(place / f"ray{turn}" / "results")
            print(
                f"{cells} cells: local {seconds['local']:.1f} s, ray {seconds['ray']:.1f} s,"
                f" ratio {seconds['ray'] / seconds['local']:.2f}; numbers {'equal' if equal else 'DIFFER'}"
            )


if __name__ == "__main__":
    main()
