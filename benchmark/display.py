"""What a run shows on the terminal: its plan, its progress, its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from benchmark.planning import Plan, backbone_title, corpus_state, dataset_state
from datasets_builders import storage

if TYPE_CHECKING:
    from agssp.stages import Stage
    from baselines.training.hooks import TrainingEvent

# Standard output is for results that a script may read.
console = Console(stderr=True)


def duration(seconds: float) -> str:
    """Returns a time for people, such as `4 min` or `12 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_plan(plan: Plan) -> None:
    """Prints what a run will do."""
    cell = plan.cells[0]
    recipe = plan.protocol.recipe(cell.backbone)
    length = f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.iterations} iterations"
    each = plan.seconds_per_cell()
    cost = (
        f"about {duration(each)} a cell on {plan.protocol.estimate.machine}" if each else "not measured yet"
    )
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("protocol", f"[bold]{plan.protocol.id}[/] ({plan.reason}): {plan.protocol.title}")
    table.add_row("detector", f"{cell.detector} with {backbone_title(cell)}, mode [bold]{cell.mode}[/]")
    for name in plan.datasets:
        table.add_row("dataset", f"{name} ({dataset_state(name)})")
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(cell.seed for cell in plan.cells))
    table.add_row("cells", f"{len(plan.cells)} (seeds {seeds})")
    table.add_row(
        "recipe", f"{length}, batch {recipe.batch_size}, {recipe.image_size} px, {recipe.optimizer.type}"
    )
    weights = plan.start.weights
    if weights is not None:
        table.add_row("weights", f"{weights.source} (sha256 {weights.sha256[:12]})")
    for stage in plan.stages():
        state = f"[green]{stage['status']}[/]" if stage["status"] == "ready" else stage["status"]
        key = f" {stage['key'][:12]}" if stage["key"] else ""
        table.add_row(stage["stage"], f"{stage['title']} ({state}{key})")
    if plan.start.corpus is not None:
        table.add_row("corpus", f"{plan.start.corpus} ({corpus_state(plan.start.corpus)})")
    for note in plan.start.notes:
        table.add_row("note", note)
    table.add_row("time", cost)
    table.add_row("device", plan.device)
    table.add_row("records", str(plan.results))
    table.add_row("cache", str(storage.home()))
    console.print(table)


@contextmanager
def show_stage(stage: Stage) -> Iterator[Callable[[TrainingEvent], None]]:
    """Shows a stage of pretraining while it is made, and what it took; gives the function that feeds it."""
    started = time.perf_counter()
    if stage.long:
        with training_progress(f"  {stage.kind}") as feed:
            yield feed
    else:
        with console.status(f"  {stage.title}"):
            yield lambda event: None
    console.print(f"  {stage.title}: made in {duration(time.perf_counter() - started)}")


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[TrainingEvent], None]]:
    """Shows a training's progress; gives the function that feeds it."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("epoch {task.fields[epoch]}"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("mAP@.5 {task.fields[map50]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None, epoch="-", loss="-", map50="-")

        def feed(event: TrainingEvent) -> None:
            progress.update(
                task,
                total=event.iterations,
                completed=event.iteration,
                description=f"{title}: evaluating" if event.validating else title,
                epoch=f"{event.epoch}/{event.epochs}",
                loss="-" if event.loss is None else f"{event.loss:.1f}",
                map50="-" if event.map50 is None else f"{event.map50:.1f}",
            )

        yield feed
