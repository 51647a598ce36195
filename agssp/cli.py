"""The command line of the method. It imports nothing heavy before a command needs it."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from datasets_builders.errors import UserError

app = typer.Typer(
    name="agssp",
    help="The AGSSP method: anomaly maps, pseudo boxes from them, and pretraining guided by both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.callback()
def _several_commands() -> None:
    """Keeps typer from running the only command without its name."""


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@app.command()
def boxes(
    maps: Annotated[Path, typer.Argument(help="Folder that `maps` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    margin: Annotated[
        float, typer.Option(help="c: a category's threshold is the mean of its maps' maxima, less c.")
    ] = 0.1,
    image_gate: Annotated[
        float | None,
        typer.Option(help="Images whose image score is under it get no boxes.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(help="Largest number of boxes of an image.")] = 10,
    nms: Annotated[
        float, typer.Option(help="Intersection over union with a better box above which a box goes.")
    ] = 0.8,
    outline: Annotated[
        str, typer.Option(help="components: as in the paper; contours: with all that they enclose.")
    ] = "components",
    coco: Annotated[
        Path | None, typer.Option(help="Folder to make, with the images and COCO JSON.", show_default=False)
    ] = None,
    yolo: Annotated[
        Path | None,
        typer.Option(help="Folder to make, with the images in YOLO's layout.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads; one a core by default.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make pseudo boxes from anomaly maps: the regions above each category's own threshold."""
    from agssp import box_command
    from agssp.pseudo_boxes import BoxSettings

    exports = {style: folder for style, folder in (("coco", coco), ("yolo", yolo)) if folder is not None}
    settings = BoxSettings(margin, image_gate, top, nms, outline)
    facts = box_command.run(maps, out, settings, workers, exports)
    if as_json:
        _print_json(facts)
    else:
        box_command.print_facts(facts)


def run_app(arguments: list[str]) -> int:
    """Runs a command line.

    Args:
        arguments: Its words, without the program's name.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted.
    """
    try:
        app(arguments, prog_name="python -m agssp")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0
