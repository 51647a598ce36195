"""What an audit says: as data for scripts, and as a table for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from datasets_builders.audit.descriptors import ORIENTATIONS
from datasets_builders.audit.matching import KINDS, Found, Match
from datasets_builders.audit.pictures import Collection

VERSION = 1
SHOWN = 20


@dataclass(frozen=True)
class Audit:
    """A finished comparison of two collections, or of one with itself.

    Attributes:
        queries: The corpus, or the dataset that is compared with itself.
        references: The dataset.
        found: What was found.
    """

    queries: Collection
    references: Collection
    found: Found

    @property
    def itself(self) -> bool:
        """Whether a dataset was compared with itself."""
        return self.queries is self.references

    def leaks(self) -> list[Match]:
        """Returns the matches that matter: all; of a dataset with itself, those that straddle its splits."""
        if not self.itself:
            return self.found.matches
        split = self.queries.split
        return [match for match in self.found.matches if split(match.query) != split(match.reference)]

    def matched_queries(self) -> list[int]:
        """Returns the rows of the first collection that have a match."""
        return sorted({match.query for match in self.found.matches})

    def groups(self) -> list[list[int]]:
        """Returns the images of a dataset that hang together by matches, largest group first."""
        parent: dict[int, int] = {}

        def root(row: int) -> int:
            parent.setdefault(row, row)
            while parent[row] != row:
                row = parent[row]
            return row

        for match in self.found.matches:
            parent[root(match.query)] = root(match.reference)
        members: dict[int, list[int]] = {}
        for row in sorted(parent):
            members.setdefault(root(row), []).append(row)
        return sorted(members.values(), key=lambda rows: (-len(rows), rows))


def _image(collection: Collection, row: int) -> dict[str, Any]:
    split = collection.split(row)
    return {"image_id": collection.image_id(row)} | ({"split": split} if split else {})


def as_data(audit: Audit) -> dict[str, Any]:
    """Returns an audit as plain data: names, fingerprints, counts, every pair, and groups within a dataset."""
    found, queries, references = audit.found, audit.queries, audit.references
    data: dict[str, Any] = {
        "version": VERSION,
        "first": {"name": queries.name, "fingerprint": queries.fingerprint, "images": len(queries)},
        "second": {
            "name": references.name,
            "fingerprint": references.fingerprint,
            "images": len(references),
        },
        "pairs_aligned": found.compared,
        "counts": dict(Counter(match.kind for match in found.matches)),
        "leaks": len(audit.leaks()),
        "blank": {
            "first": [queries.image_id(row) for row in found.blank[0]],
            "second": [references.image_id(row) for row in found.blank[1]],
        },
        "pairs": [
            {
                "first": _image(queries, match.query),
                "second": _image(references, match.reference),
                "kind": match.kind,
                "score": round(match.score, 4),
                "second_turned": ORIENTATIONS[match.orientation],
                "window_in_second": [round(value, 4) for value in match.window],
                "first_covered": round(match.covers_query, 4),
                "second_covered": round(match.covers_reference, 4),
            }
            for match in found.matches
        ],
    }
    if audit.itself:
        data["groups"] = [[_image(queries, row) for row in rows] for rows in audit.groups()]
    return data


def _label(collection: Collection, row: int) -> str:
    split = collection.split(row)
    return f"{collection.image_id(row)} ({split})" if split else collection.image_id(row)


def _verdict(audit: Audit) -> Text:
    leaks = audit.leaks()
    if audit.itself:
        crossing = {row for match in leaks for row in (match.query, match.reference)}
        what = f"{len(leaks)} pair(s) straddle its splits, {len(crossing)} images"
        title = f"{audit.queries.name} against itself"
    else:
        references = {match.reference for match in leaks}
        what = (
            f"{len(audit.matched_queries())} of {len(audit.queries)} images match "
            f"{len(references)} of {len(audit.references)}"
        )
        title = f"{audit.queries.name} against {audit.references.name}"
    return Text.assemble((title, "bold"), ": ", (what, "yellow" if leaks else "green"))


def render(audit: Audit) -> Group:
    """Returns an audit as a table: counts by kind, the pairs of highest score, and what was left out."""
    counts = Counter(match.kind for match in audit.found.matches)
    crossing = Counter(match.kind for match in audit.leaks())
    summary = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    summary.add_column("kind")
    summary.add_column("pairs", justify="right")
    if audit.itself:
        summary.add_column("across splits", justify="right")
    summary.add_column("")
    for kind, meaning in KINDS.items():
        numbers = [str(counts[kind])] + ([str(crossing[kind])] if audit.itself else [])
        summary.add_row(kind, *numbers, Text(meaning, style="dim"))
    parts: list[Any] = [_verdict(audit), summary]
    leaks = sorted(audit.leaks(), key=lambda match: (-match.score, match.query, match.reference))
    if leaks:
        pairs = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("first", "second", "kind", "second is"):
            pairs.add_column(column, overflow="fold")
        for column in ("score", "covered"):
            pairs.add_column(column, justify="right")
        for match in leaks[:SHOWN]:
            pairs.add_row(
                Text(_label(audit.queries, match.query)),
                Text(_label(audit.references, match.reference)),
                match.kind,
                ORIENTATIONS[match.orientation],
                f"{match.score:.2f}",
                f"{min(1.0, max(match.covers_query, match.covers_reference)):.0%}",
            )
        parts.append(pairs)
        if len(leaks) > SHOWN:
            parts.append(
                Text(f"and {len(leaks) - SHOWN} more pairs: all are in the JSON report", style="dim")
            )
    blank = len(audit.found.blank[0]) + (0 if audit.itself else len(audit.found.blank[1]))
    if blank:
        parts.append(
            Text(f"{blank} images have no detail to compare; of these only exact copies are found", "dim")
        )
    return Group(*parts)


def show(audit: Audit, console: Console) -> None:
    """Prints an audit for people."""
    console.print(render(audit))
