"""Which corpora exist, from `corpora.yaml`; light, so that listing them is."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

from datasets_builders.errors import unknown_name

CORPORA = Path(__file__).with_name("corpora.yaml")


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
    return name.partition("/")[0] in entries()


def entry(name: str) -> dict[str, Any]:
    """Returns the entry of a corpus.

    Raises:
        UserError: There is no such corpus.
    """
    base = name.partition("/")[0]
    if base not in entries() or (base != name and "synthetic" not in entries()[base]):
        raise unknown_name("corpus", name, entries(), "python -m datasets_builders list")
    return entries()[base]
