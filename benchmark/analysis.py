"""What a results folder says: every row against its baseline, which rows cannot be told apart, where each stands."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmark.compare import (
    Comparison,
    RowScores,
    Together,
    baseline_of,
    compare_pairs,
    score_row,
    together,
    unusable,
)
from benchmark.rows import Row
from benchmark.statistics.difference import separate
from benchmark.statistics.ranking import Standing, standings
from datasets_builders.errors import UserError

_log = logging.getLogger(__name__)

METRIC = "map50"
"""By which rows are grouped and ranked: the paper's first."""


@dataclass(frozen=True)
class Block:
    """Rows on one dataset under one protocol.

    Attributes:
        protocol: Such as `mini-v1`.
        dataset: Name.
        groups: Titles of rows that cannot be told apart, best first; a row may be in several.
        smallest: The smallest difference of mAP@.5 found with 80 % probability, median over pairs of rows; None where
            there is one row, or too few seeds to say.
        seeds_known: Whether every row has two seeds or more; if not, `smallest` and the groups hold images alone.
    """

    protocol: str
    dataset: str
    groups: list[tuple[str, ...]]
    smallest: float | None
    seeds_known: bool


@dataclass(frozen=True)
class Analysis:
    """Everything that `report --against` says.

    Attributes:
        against: Mode of the baseline.
        comparisons: Every row that has a baseline, less that baseline.
        together: The same over several datasets.
        blocks: By protocol and dataset.
        standings: For each protocol with two datasets or more, by title: techniques that are on all of them.
    """

    against: str
    comparisons: list[Comparison]
    together: list[Together]
    blocks: list[Block]
    standings: dict[str, dict[str, Standing]]

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "against": self.against,
            "comparisons": [entry.to_dict() for entry in self.comparisons],
            "together": [entry.to_dict() for entry in self.together],
            "blocks": [asdict(block) for block in self.blocks],
            "standings": {
                protocol: {title: asdict(standing) for title, standing in entries.items()}
                for protocol, entries in self.standings.items()
            },
        }


def analyse(found: Sequence[Row], against: str) -> Analysis:
    """Reads the detections of all rows and compares them; takes seconds a record.

    Args:
        found: All rows of a results folder; those of a protocol that no longer counts are left out.
        against: Mode of the baseline.

    Raises:
        UserError: No row has that mode, no dataset is at hand, or a record's detections are missing. Rows of a dataset
            that is not prepared here are left out with a warning.
    """
    found = [row for row in found if row.invalid is None]
    if not any(row.mode == against for row in found):
        modes = ", ".join(sorted({row.mode for row in found}))
        raise UserError(f"No row has the mode {against!r}. Modes of these records: {modes or 'none'}.")
    scores: dict[str, RowScores] = {}

    def scores_of(row: Row) -> RowScores:
        key = row.records[0].record.row_key
        if key not in scores:
            scores[key] = score_row(row)
        return scores[key]

    blocks: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in found:
        blocks[row.block].append(row)
    for block, group in list(blocks.items()):
        if reason := unusable(group[0]):
            _log.warning("left out: %s (%s): %s", group[0].dataset, group[0].protocol, reason)
            del blocks[block]
    if not blocks:
        raise UserError("No dataset of these records can be used here; the reasons are above.")
    pairs = [
        (row, baseline)
        for group in blocks.values()
        for row in group
        if (baseline := baseline_of(row, group, against)) is not None
    ]
    comparisons = compare_pairs(pairs, scores_of)
    return Analysis(
        against=against,
        comparisons=comparisons,
        together=together(comparisons),
        blocks=[_block(group, [scores_of(row) for row in group]) for group in blocks.values()],
        standings=_standings(blocks, scores_of),
    )


def _block(group: Sequence[Row], scores: Sequence[RowScores]) -> Block:
    names = titles(group)
    groups, smallest = separate([entry.metrics[METRIC] for entry in scores], scores[0].images)
    return Block(
        protocol=group[0].protocol,
        dataset=group[0].dataset,
        groups=[tuple(names[i] for i in members) for members in groups],
        smallest=smallest,
        seeds_known=all(len(row.seeds) > 1 for row in group),
    )


def _standings(
    blocks: Mapping[tuple[str, str, str], Sequence[Row]], scores_of: Callable[[Row], RowScores]
) -> dict[str, dict[str, Standing]]:
    """Ranks, for each protocol, the techniques that are once on each of its datasets."""
    result = {}
    for protocol in dict.fromkeys(protocol for protocol, _, _ in blocks):
        groups = [group for (name, _, _), group in blocks.items() if name == protocol]
        counts = [Counter(row.technique for row in group) for group in groups]
        everywhere = [row for row in groups[0] if all(count[row.technique] == 1 for count in counts)]
        if len(groups) < 2 or len(everywhere) < 2:
            continue
        table = [
            [scores_of(next(row for row in group if row.technique == one.technique)) for group in groups]
            for one in everywhere
        ]
        found = standings(
            [[scores.metrics[METRIC] for scores in line] for line in table],
            [scores.images for scores in table[0]],
        )
        named = zip(titles(everywhere), found, strict=True)
        result[protocol] = dict(sorted(named, key=lambda entry: entry[1].rank))
    return result


def titles(found: Sequence[Row]) -> list[str]:
    """Names rows for people, each differently."""
    several = len({row.detector for row in found}) > 1
    plain = [f"{row.detector} {row.title}" if several else row.title for row in found]
    seen: Counter[str] = Counter()
    names = []
    for title in plain:
        seen[title] += 1
        names.append(title if seen[title] == 1 else f"{title} #{seen[title]}")
    return names
