"""What `python -m agssp boxes` does and prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agssp.box_settings import BoxSettings
from agssp.box_store import BoxStore
from agssp.map_store import open_maps
from agssp.pseudo_boxes import make_boxes
from datasets_builders.errors import UserError


def run(
    maps_folder: Path, out: Path, settings: BoxSettings, workers: int | None, exports: dict[str, Path]
) -> dict[str, Any]:
    """Makes boxes, exports them where asked, and returns the facts to print.

    Args:
        maps_folder: Folder of the maps.
        out: Folder of the boxes.
        settings: How to make them.
        workers: Threads; None for one a core.
        exports: Format (`coco`, `yolo`) -> folder to make.

    Raises:
        UserError: As `make_boxes`, or an export's folder exists.
    """
    for folder in exports.values():
        if folder.exists():
            raise UserError(f"{folder} exists already: choose another folder, or remove it first.")
    maps = open_maps(maps_folder)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("Boxes", total=len(maps))
        boxes = make_boxes(
            maps,
            out,
            settings,
            workers=workers,
            on_progress=lambda done: bar.update(task, completed=done),
        )
    for style, folder in exports.items():
        from agssp.box_export import export

        export(boxes, style, folder)
    return facts(boxes) | {"exports": {style: str(folder) for style, folder in exports.items()}}


def facts(boxes: BoxStore) -> dict[str, Any]:
    """Returns what is said of boxes: totals, and of every category."""
    found = boxes.categories.values()
    return {
        "folder": str(boxes.folder),
        "fingerprint": boxes.fingerprint,
        "identity": boxes.identity,
        "images": len(boxes),
        "boxes": sum(category.boxes for category in found),
        "negatives": sum(category.negatives for category in found),
        "flooded": sum(category.flooded for category in found),
        "categories": {name: vars(category) for name, category in boxes.categories.items()},
    }


def print_facts(found: dict[str, Any]) -> None:
    """Prints a table of the categories, the totals, and where everything is."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("category")
    for column in ("images", "boxes", "without boxes", "threshold"):
        table.add_column(column, justify="right")
    rows = dict(found["categories"])
    if len(rows) > 1:
        rows["all"] = {key: found[key] for key in ("images", "boxes", "negatives")} | {"threshold": None}
    for name, category in rows.items():
        share = category["negatives"] / max(category["images"], 1)
        limit = "" if category["threshold"] is None else f"{category['threshold']:.4f}"
        table.add_row(name, f"{category['images']:,}", f"{category['boxes']:,}", f"{share:.0%}", limit)
    console = Console()
    console.print(table)
    if found["flooded"]:
        names = [name for name, category in found["categories"].items() if category["flooded"]]
        console.print(
            f"[yellow]{found['flooded']:,} images lie above their threshold as a whole[/], their box is the image: "
            f"{', '.join(names)}. A smaller --margin raises the threshold.",
            highlight=False,
        )
    for what, where in {"folder": found["folder"], **found["exports"]}.items():
        console.print(f"{what}: {where}", highlight=False, soft_wrap=True)
    console.print(f"fingerprint: {found['fingerprint']}", highlight=False, soft_wrap=True)
