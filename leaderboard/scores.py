"""What the statistics need of a row, computed once and kept; ranks and groups of the rows of one dataset."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import datasets_builders
from benchmark.analysis import METRIC
from benchmark.compare import METRICS, RowScores, score_row
from benchmark.rows import Row
from benchmark.statistics import resampling
from benchmark.statistics.difference import Scores, separate
from benchmark.statistics.ranking import standings
from datasets_builders import registry
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file, content_key, file_sha256
from leaderboard.disk_cache import DiskCache

SECONDS_PER_RECORD = 3
"""Roughly, with 300 detections on each of 530 images."""

_KEPT = DiskCache("scores", ".npz", most=20_000)

_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy raises of a file that was cut or garbled."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """What the detections of a dataset's rows say about their order.

    Attributes:
        ranks: For each row, its rank over drawn images and seeds (mean) and the 95 % interval of it.
        groups: For each row, the letters of the groups it is in: rows that share one cannot be told apart.
        smallest: The difference found in 4 of 5 comparisons, points; None where there are too few seeds to say.
        seeds_known: Whether every row has two seeds or more.
    """

    ranks: list[tuple[float, float, float]]
    groups: list[str]
    smallest: float | None
    seeds_known: bool


def _file(row: Row) -> Path:
    """Another version of the statistics computes again."""
    code = file_sha256(Path(str(resampling.__file__)))
    shas = [[entry.record.key, entry.record.last.detections_sha256] for entry in row.records]
    return _KEPT.path(content_key([1, code, resampling.RESAMPLES, shas]))


def is_stored(row: Row) -> bool:
    """Whether a row's scores were computed before."""
    return _file(row).is_file()


def stored_scores(row: Row) -> RowScores | None:
    """Returns a row's scores where they were computed before, else None."""
    file = _file(row)
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            kept = {name: arrays[name] for name in arrays.files}
    except _DAMAGE as error:  # only a cache: computed again
        _log.warning("%s is damaged and is computed again: %s", file, error)
        return None
    names = [str(name) for name in kept["classes"]]
    return RowScores(
        images=int(kept["images"]),
        metrics={name: Scores(kept[f"{name}_points"], kept[f"{name}_draws"]) for name in METRICS},
        classes={
            name: Scores(kept["class_points"][k], kept["class_draws"][k]) for k, name in enumerate(names)
        },
    )


def scores_of(row: Row) -> RowScores:
    """Returns a row's scores, computing and keeping them where that was not done yet.

    Raises:
        UserError: As `benchmark.compare.score_row`.
    """
    found = stored_scores(row)
    if found is not None:
        return found
    made = score_row(row)
    arrays: dict[str, Any] = {
        "images": np.asarray(made.images),
        "classes": np.asarray(list(made.classes), dtype=np.str_),
    }
    for name, scores in made.metrics.items():
        arrays |= {f"{name}_points": scores.points, f"{name}_draws": scores.resampled}
    arrays["class_points"] = np.stack([scores.points for scores in made.classes.values()])
    arrays["class_draws"] = np.stack([scores.resampled for scores in made.classes.values()])
    try:
        with atomic_file(_file(row)) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        _KEPT.trim()
    except OSError as error:  # slower next time, not wrong
        _log.warning("scores cannot be kept: %s", error.strerror or error)
    return made


def why_not(dataset: str) -> str | None:
    """Says why nothing can be computed on a dataset here; None where it can. Loads nothing."""
    try:
        card = registry.card(dataset)
        if card.origin == "procedural" or datasets_builders.is_ready(dataset):
            return None
    except UserError as error:
        return str(error)
    return (
        f"The labels of {dataset} are not on this machine. Bring them here: "
        f"python -m datasets_builders prepare {card.dataset} --raw DIR"
    )


def judge(rows: Sequence[Row], done: Callable[[int], object] = lambda number: None) -> Judgement:
    """Compares all rows of one dataset with each other.

    Args:
        rows: Of one block (`Row.block`), two or more.
        done: Told how many rows are read, after each.

    Raises:
        UserError: As `scores_of`.
    """
    scores = []
    for number, row in enumerate(rows, start=1):
        scores.append(scores_of(row))
        done(number)
    found = standings([[entry.metrics[METRIC]] for entry in scores], [scores[0].images])
    groups, smallest = separate([entry.metrics[METRIC] for entry in scores], scores[0].images)
    return Judgement(
        ranks=[(entry.rank, *entry.rank_interval) for entry in found],
        groups=[
            " ".join(_letter(n) for n, members in enumerate(groups) if i in members) for i in range(len(rows))
        ],
        smallest=smallest,
        seeds_known=all(len(row.seeds) > 1 for row in rows),
    )


def _letter(number: int) -> str:
    """Returns a, b, ..., z, aa, ab, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
