"""Which corpora exist, from `corpora.yaml`; light, so that listing them is."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import yaml

from datasets_builders.errors import UserError, unknown_name

CORPORA = Path(__file__).with_name("corpora.yaml")
OWN_PREFIX = "corpus_own_"
_OWN_NAME = re.compile(r"corpus_own_[a-z0-9][a-z0-9_]{0,39}")


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """Returns the entries of `corpora.yaml`; treat them as read-only."""
    content: dict[str, dict[str, Any]] = yaml.safe_load(CORPORA.read_text(encoding="utf-8"))
    return content


def names() -> list[str]:
    """Returns the names of the corpora."""
    return list(entries())


def is_corpus(name: str) -> bool:
    """Tells whether a name is that of a corpus, `name` or `name/...`."""
    return name.partition("/")[0] in entries() or is_own(name)


def is_own(name: str) -> bool:
    """Tells whether a name is that of a corpus of a user's own images."""
    return _OWN_NAME.fullmatch(name) is not None


def entry(name: str) -> dict[str, Any]:
    """Returns the entry of a corpus; `own` is set in that of a user's own images.

    Raises:
        UserError: There is no such corpus.
    """
    if is_own(name):
        return {"title": f"{name.removeprefix(OWN_PREFIX)}, images of one's own", "own": True}
    if name.startswith(OWN_PREFIX):
        raise UserError(
            f"{name!r} cannot be the name of a corpus of your own:"
            f" {OWN_PREFIX} and at most 40 small letters, digits and _."
        )
    base = name.partition("/")[0]
    if base not in entries() or (base != name and "synthetic" not in entries()[base]):
        raise unknown_name("corpus", name, entries(), "python -m datasets_builders list")
    return entries()[base]
