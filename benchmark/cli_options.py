"""What several commands have in common. It imports nothing heavy: `--help` is to be quick."""

from __future__ import annotations

import contextlib
import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def quiet_output() -> contextlib.AbstractContextManager[object]:
    """Libraries print to standard output as they please; it belongs to the result."""
    return contextlib.redirect_stdout(sys.stderr)


def print_json(value: Any) -> None:
    """Prints what a script is to read."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
