"""Runs cells: dataset, finetuning, evaluation, record; skips what is finished, goes on with what is not."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import datasets_builders
from benchmark.cells import Cell, cell_identity, cell_key
from benchmark.display import cell_progress, console, duration, show_plan
from benchmark.planning import Plan, make_plan
from datasets_builders import storage
from datasets_builders.errors import UserError

logger = logging.getLogger(__name__)


def run_cells(
    *,
    backbone: str,
    mode: str,
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
        mode=mode,
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
    _quieten_libraries()
    for number, (cell, entry) in enumerate(zip(plan.cells, outcome["cells"], strict=True), start=1):
        entry.update(_run_cell(plan, cell, f"[{number}/{len(plan.cells)}]"))
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


def _quieten_libraries() -> None:
    # Deprecation notes of libraries to each other; what concerns the user is said by this package.
    warnings.filterwarnings("ignore", module=r"(mm\w+|torch|torchvision|timm|xdoctest)(\..*)?")
    logging.getLogger("mmengine").setLevel(logging.ERROR)
