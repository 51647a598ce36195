"""Errors that a person can act on, and their words, shared by every package of the project."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: bad input, a missing file, an unknown name.

    The message names the thing, the reason and the next command. Command lines print it without a traceback
    and leave with exit code 2.
    """


def counted(number: int, one: str, many: str) -> str:
    """Returns a number with its noun: `1 class`, `2 classes`, `12,000 images`."""
    return f"{number:,} {one if number == 1 else many}"


def unknown_name(kind: str, name: str, known: Iterable[str], see: str) -> UserError:
    """Builds the error for a name that does not exist, with the nearest one that does.

    Args:
        kind: What was asked for, in words, such as `"dataset"`.
        name: The name as the user typed it.
        known: The names that exist.
        see: The command that lists them.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(names)}."
    return UserError(f"Unknown {kind} {name!r}.{hint} See: {see}")
