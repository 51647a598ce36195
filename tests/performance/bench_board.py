"""Seconds to open a board of many records: cold, warm, after one new record, and to filter its rows.

python tests/performance/bench_board.py [RECORDS]
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datasets_builders.storage import content_key  # noqa: E402

SEEDS, BACKBONES = 3, ("csp_darknet", "resnet", "swin", "lite0")
MODES = ("scratch", "imagenet", "industrial", "agbp", "agssp")
DATASETS = ("casting_billet", "steel_pipe", "gc10_det", "neu_det", "fd")


def make(folder: Path, records: int) -> None:
    """Writes records like a measured one, of many cells, each with three seeds."""
    original = next((ROOT / "results").rglob("record.json"))
    content = json.loads(original.read_text(encoding="utf-8"))
    for number in range(records):
        row, seed = divmod(number, SEEDS)
        add(folder, content, row, seed)


def add(folder: Path, content: dict[str, Any], row: int, seed: int) -> None:
    """Writes one record."""
    inputs = {**content["inputs"], "row": row, "seed": seed}
    inputs.pop("upstream", None)
    cell = {
        **content["cell"],
        "backbone": BACKBONES[row % 4],
        "mode": MODES[row // 4 % 5],
        "dataset": DATASETS[row // 20 % 5],
        "seed": seed,
    }
    made = {
        **content,
        "inputs": inputs,
        "key": content_key(inputs),
        "cell": cell,
        "pretraining": None,
        "dataset": {**content["dataset"], "name": cell["dataset"]},
    }
    name = f"{cell['backbone']}_{cell['mode']}_seed{seed}-{made['key'][:12]}"
    place = folder / "mini-v1" / cell["dataset"] / name
    place.mkdir(parents=True)
    (place / "record.json").write_text(json.dumps(made, indent=2, sort_keys=True), encoding="utf-8")


def timed(what: str, call: Callable[[], Any]) -> Any:
    """Prints how long a call takes, by the clock and of processors, and returns what it returns."""

    def used() -> float:
        return sum(
            sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )

    begun, before = time.perf_counter(), used()
    result = call()
    print(f"{what:<32}{time.perf_counter() - begun:8.3f} s, {used() - before:7.3f} CPU s", flush=True)
    return result


def main() -> None:
    """Measures."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AGSSP_BENCH_HOME"] = f"{scratch}/home"
        results = Path(scratch) / "results"
        timed(f"(making {records} records)", lambda: make(results, records))
        from leaderboard.data import open_board

        board = timed("cold: no index", lambda: open_board(results))
        assert len(board.records) == records, board.quarantined
        assert len(board.quarantined) == 0
        timed("warm: nothing changed", lambda: open_board(results))
        content = json.loads(next((ROOT / "results").rglob("record.json")).read_text(encoding="utf-8"))
        add(results, content, records, 0)
        board = timed("warm: one new record", lambda: open_board(results))
        assert len(board.records) == records + 1
        timed(
            "a filter of rows",
            lambda: board.rows[(board.rows.backbone == "swin") & board.rows["mode"].isin(["agssp"])],
        )
        timed("a search in rows", lambda: board.rows[board.rows.dataset.str.contains("gc10", regex=False)])
        timed("sorted rows", lambda: board.rows.sort_values("map50", ascending=False))
        row = board.rows[board.rows.trust == "measured"].iloc[0]
        timed("the records of one row", lambda: board.row(row.row_id))


if __name__ == "__main__":
    main()
