"""Runs cells: dataset, finetuning, evaluation, record; skips what is finished, goes on with what is not."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.markup import escape

from agssp.display import console, quieten_libraries
from benchmark.cell_run import Track, run_cell
from benchmark.display import show_plan
from benchmark.modes import Choice
from benchmark.planning import make_plan
from datasets_builders import storage
from datasets_builders.errors import UserError


def run_cells(
    *,
    backbone: str,
    choice: Choice,
    datasets: list[str] | None,
    detector: str,
    protocol_name: str,
    seeds: list[int] | None,
    device: str,
    results: Path,
    dry_run: bool,
) -> dict[str, Any]:
    """Plans, trains, evaluates and records; tells on standard error what it does.

    Returns:
        The plan, with each cell's `status` (planned, recorded, already recorded, failed), its record and its metrics.

    Raises:
        UserError: Bad input, before anything is trained.
    """
    if device == "cpu":
        # mmengine takes a GPU whenever it sees one; this must be set before torch looks.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    plan = make_plan(
        backbone=backbone,
        choice=choice,
        detector=detector,
        datasets=datasets,
        protocol_name=protocol_name,
        seeds=seeds,
        device=device,
        results=results,
    )
    show_plan(plan)
    outcome = plan.to_dict()
    if dry_run:
        for entry in outcome["cells"]:
            entry["status"] = "planned"
        console.print("Nothing was trained: --dry-run.")
        return outcome
    check_writable(results, "results folder", "--results DIR")
    check_writable(storage.home(), "cache", f"{storage.HOME_VARIABLE}=DIR python -m benchmark ...")
    quieten_libraries()
    track = Track(plan.protocol, plan.start, plan.device, plan.results)
    # Libraries print to standard output as they please; it belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        for number, (cell, entry) in enumerate(zip(plan.cells, outcome["cells"], strict=True), start=1):
            console.print(rf"\[{number}/{len(plan.cells)}] [bold]{cell.title}[/]")
            try:
                entry.update(run_cell(track, cell))
            except UserError as error:  # ends this cell; the others go on
                console.print(f"  [red]failed[/]: {escape(str(error))}")
                entry.update(status="failed", reason=str(error))
    _show_outcome(outcome)
    return outcome


def check_writable(folder: Path, what: str, remedy: str) -> None:
    """Makes sure that a folder exists and takes files, before hours are spent.

    Raises:
        UserError: It does not.
    """
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The {what} {folder} cannot be written ({error.strerror}). Choose another: {remedy}"
        ) from None


def _show_outcome(outcome: dict[str, Any]) -> None:
    failed = [entry for entry in outcome["cells"] if entry["status"] == "failed"]
    for entry in failed:
        console.print(f"[red]failed[/] {entry['dataset']} seed {entry['seed']}: {escape(entry['reason'])}")
    if not failed:
        words = shlex.join(["python", "-m", "benchmark", "report", "--results", outcome["results"]])
        console.print(f"Look at all records: {words}", soft_wrap=True, markup=False)
