"""What a matrix costs besides its work: planning 10,000 cells, and each finished cell.

    python tests/performance/bench_matrix.py

The second number is the time from one outcome to the next on one worker whose work takes no time at all, the third what
cells of protocol mock take besides their finetuning: opening the dataset, finding what is there, storing the record.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmark.matrix.engines.local import LocalEngine
from benchmark.matrix.graph import Graph, Node
from benchmark.matrix.schedule import Event, Outcome

SEEDS = 109  # 23 techniques x 4 datasets x 109 seeds are 10,028 cells
NODES = 2000


def nothing(node: Node, log: Path) -> Outcome:
    """Stands for work that takes no time."""
    return Outcome("done", log=str(log), result={"map50": 0.0, "map50_95": 0.0})


def beside_finetuning(place: Path) -> list[float]:
    """Returns seconds of processor that each of four cells takes besides its finetuning, in this process."""
    from benchmark import finetune, protocol
    from benchmark.matrix import execution, presets
    from benchmark.matrix.graph import build

    mock = protocol.load("mock-v1")
    tasks = presets.select(presets.read("table2", mock).tasks, "backbone=csp_darknet,mode=scratch", None)
    spent: list[float] = []
    plain = finetune.finetune

    def timed(**settings: Any) -> finetune.FinetuneResult:
        began = time.process_time()
        result = plain(**settings)
        spent.append(time.process_time() - began)
        return result

    finetune.finetune = timed
    found = []
    for node in build(tasks, mock, device="cpu", results=place / "results").nodes.values():
        began = time.process_time()
        outcome = execution.execute(node, place / f"{node.id}.log")
        if outcome.status == "failed":
            sys.exit(f"{node.title}: {outcome.reason}")
        if node.kind == "cell":
            found.append(time.process_time() - began - spent[-1])
    return found


def main() -> None:
    """Prints the three numbers."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "benchmark",
            "matrix",
            "table2",
            "--protocol",
            "mock",
            "--device",
            "cpu",
        ]
        seeds = [str(seed) for seed in range(SEEDS)]
        began = time.perf_counter()
        process = psutil.Popen(
            [*command, "--dry-run", "--results", folder, "--seeds", *seeds],
            env=os.environ | {"AGSSP_BENCH_HOME": folder},
            stderr=subprocess.PIPE,
        )
        told = process.stderr.read().decode()
        _, _, usage = os.wait4(process.pid, 0)
        cells = next(line.split()[1] for line in told.splitlines() if line.startswith("cell"))
        wall, busy = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    sys.stdout.write(f"dry run of {cells} cells: {wall:.1f} s wall, {busy:.1f} s of processor\n")

    times: list[float] = []

    def note(event: Event) -> None:
        if event.outcome is not None:
            times.append(time.perf_counter())

    graph = Graph({f"n{i}": Node(f"n{i}", "cell", f"node {i}", (), {}) for i in range(NODES)})
    LocalEngine(1, "cpu", nothing).run(graph, on_event=note)
    each = (times[-1] - times[0]) / (len(times) - 1)
    sys.stdout.write(f"overhead of the engine: {1000 * each:.2f} ms a finished node\n")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AGSSP_BENCH_HOME"] = folder
        beside = beside_finetuning(Path(folder))
    sys.stdout.write(f"a mock cell besides its finetuning: {max(beside[1:]):.2f} s of processor at most\n")


if __name__ == "__main__":
    main()
