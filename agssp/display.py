"""What a long computation shows on the terminal: stages of pretraining, and trainings while they run."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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


@contextmanager
def show_stage(stage: Stage) -> Iterator[Callable[[TrainingEvent], None]]:
    """Shows a stage of pretraining while it is made, and what it took; gives the function that feeds it."""
    started = time.perf_counter()
    if stage.long:
        with training_progress(f"  {stage.kind}") as feed:
            yield feed
    else:
        with console.status(f"  {escape(stage.title)}"):
            yield lambda event: None
    console.print(f"  {escape(stage.title)}: made in {duration(time.perf_counter() - started)}")


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
    # Where nobody watches, a bar would only leave empty lines in the log.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
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


def quieten_libraries() -> None:
    """Silences the notes of libraries to each other; what concerns the user is said by us."""
    warnings.filterwarnings("ignore", module=r"(mm\w+|torch|torchvision|timm|xdoctest)(\..*)?")
    logging.getLogger("mmengine").setLevel(logging.ERROR)
