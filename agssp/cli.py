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
