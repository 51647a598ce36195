"""Texts that strangers write and others read: in tables, on pages, in comments, in spreadsheets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, Field

_MARKUP = re.compile(r"[<>`|\[\]\\*&{}]|://|~~|__|^\s*#|!\(")
_COMPUTED = ("=", "+", "-", "@")
_FORMULA = (*_COMPUTED, "'", "\t", "\r", "%")
_ACTIVE = re.compile(r"<\s*[a-zA-Z/!?]|`|\]\(|javascript:", re.IGNORECASE)


def complaint(text: str) -> str | None:
    """Says why a text cannot stand as it is in HTML, Markdown, a terminal and a spreadsheet; None where it can."""
    for character in text:
        kind = unicodedata.category(character)
        if kind.startswith("C") or kind in ("Zl", "Zp"):
            return f"holds the character U+{ord(character):04X}, which is no letter, number, sign or space"
    found = _MARKUP.search(text)
    if found:
        return f"holds {found[0].strip()!r}, which is markup: write plain words"
    if text.startswith(_FORMULA):
        return f"begins with {text[0]!r}, which a spreadsheet computes"
    if text != text.strip():
        return "begins or ends with a space"
    return None


def _plain(text: str) -> str:
    found = complaint(text)
    if found:
        raise ValueError(found)
    return text


PlainText = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_plain)]
"""Words for people, up to 2000 characters, that are text wherever they are shown."""

Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._()/-]{0,58}[A-Za-z0-9)]$"), AfterValidator(_plain)
]
"""The name of a submission: 2 to 60 letters, digits, spaces and . _ ( ) / -"""


def for_spreadsheet(text: str) -> str:
    """Returns a text for a cell of CSV: on one line, with an apostrophe before what a spreadsheet would compute."""
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return f"'{line}" if line != "-" and line.lstrip().startswith(_COMPUTED) else line


def slug(name: str) -> str:
    """Returns the name of a submission's folder: lower case, without anything a path could misread."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def active_texts(value: Any, place: str = "") -> Iterator[str]:
    """Finds texts inside nested values that a page or a spreadsheet might execute.

    Args:
        value: JSON values.
        place: Where they stand.

    Yields:
        A line for each: its place and the reason.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            yield from active_texts(name, f"a name in {place or 'the file'}")
            yield from active_texts(item, f"{place}.{name[:40]}" if place else name[:40])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from active_texts(item, place)
    elif isinstance(value, str):
        if any(unicodedata.category(character).startswith("C") for character in value):
            yield f"{ascii(place)[1:-1]}: holds invisible or broken characters"
        elif _ACTIVE.search(value):
            yield f"{ascii(place)[1:-1]}: holds markup"
        elif len(value) > 1 and value.startswith(_COMPUTED):
            yield f"{ascii(place)[1:-1]}: begins like a formula of a spreadsheet"
