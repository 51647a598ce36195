"""The difference of two rows, or of every row to its baseline, with all that the stored detections say about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

import datasets_builders
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth
from benchmark.records import RECORD_FILE, DatasetUsed, StoredRecord
from benchmark.rows import Row, rows
from benchmark.statistics.difference import LEVEL, Difference, Scores, difference, holm
from benchmark.statistics.resampling import MatchedSplit, draw_images, mean_ap
from benchmark.statistics.together import exchange_p, mean_difference
from benchmark.verify import TOLERANCE, check_fingerprint
from datasets_builders.errors import UserError, unknown_name

METRICS = {"map50": "mAP@.5", "map50_95": "mAP@.5:.95"}
_WORDS = ("protocol", "dataset", "detector", "backbone", "method", "mode", "maps", "corpus")


class Technique(Protocol):
    """What a row or a reported number is about."""

    @property
    def detector(self) -> str: ...  # noqa: D102
    @property
    def backbone(self) -> str: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102


T = TypeVar("T", bound=Technique)


@dataclass(frozen=True, eq=False)
class RowScores:
    """A row's numbers on its split as it is and on drawn images.

    Attributes:
        images: Of the split.
        metrics: `map50` and `map50_95`, percent.
        classes: AP@.5 of every class that has objects, percent.
    """

    images: int
    metrics: dict[str, Scores]
    classes: dict[str, Scores]


@dataclass(frozen=True)
class Comparison:
    """Row A less row B on one dataset.

    Attributes:
        a: One row.
        b: The other.
        metrics: By the names of `METRICS`.
        adjusted: The p-values of `metrics` after Holm's correction over all comparisons made together.
        classes: AP@.5 of each class; None where too few draws of images hold an object of it.
        classes_adjusted: Their p-values after Holm's correction over the classes.
        scores: Of A and B, by the names of `METRICS`.
    """

    a: Row
    b: Row
    metrics: dict[str, Difference]
    adjusted: dict[str, float]
    classes: dict[str, Difference | None]
    classes_adjusted: dict[str, float]
    scores: dict[str, tuple[Scores, Scores]] = field(repr=False)

    def differs(self, metric: str = "map50") -> bool:
        """Whether the difference is called real."""
        return self.adjusted[metric] < LEVEL

    def verdict(self) -> str:
        """Says in plain words what was found of mAP@.5."""
        found, name = self.metrics["map50"], METRICS["map50"]
        interval = f"95 % interval {found.low:+.1f} to {found.high:+.1f}"
        if self.differs():
            better = "better" if found.value > 0 else "worse"
            text = f"A is {better} than B by {abs(found.value):.1f} points of {name} ({interval})."
        else:
            smallest = found.smallest
            text = f"No difference of {name} can be told from chance: {found.value:+.1f} points ({interval})."
            if smallest is not None and smallest > 0:
                text += f" One of {smallest:.1f} points would be found in 4 of 5 such comparisons."
        if found.seed_error is None:
            text += (
                " A row has one seed: the scatter of training is not in the interval, which speaks of these trained"
                " detectors alone."
            )
        return text

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""

        def entry(found: Difference | None, adjusted: float | None) -> dict[str, Any] | None:
            if found is None:
                return None
            return asdict(found) | {"p_adjusted": adjusted, "smallest": found.smallest}

        return {
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            **{name: entry(found, self.adjusted[name]) for name, found in self.metrics.items()},
            "classes": {
                name: entry(found, self.classes_adjusted.get(name)) for name, found in self.classes.items()
            },
            "verdict": self.verdict(),
        }


@dataclass(frozen=True)
class Together:
    """Row A less row B over several datasets.

    Attributes:
        a: Title of A.
        b: Title of B.
        protocol: Such as `mini-v1`.
        datasets: Names.
        metrics: Mean difference over the datasets, by the names of `METRICS`.
        adjusted: Its p-values after Holm's correction over all that is joined together.
        exchanged: The same for exchanging seeds within datasets; see `exchange_p`.
    """

    a: str
    b: str
    protocol: str
    datasets: tuple[str, ...]
    metrics: dict[str, Difference]
    adjusted: dict[str, float]
    exchanged: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return asdict(self)


def together(found: Iterable[Comparison]) -> list[Together]:
    """Joins comparisons of the same two techniques on several datasets.

    Procedural and real datasets are never joined, nor are subsets of one dataset, which share their validation images.

    Args:
        found: Comparisons.
    """
    groups: dict[tuple[Any, ...], list[Comparison]] = defaultdict(list)
    for entry in found:
        groups[entry.a.protocol, entry.a.procedural, entry.a.technique, entry.b.technique].append(entry)
    joined = []
    for group in groups.values():
        names = [entry.a.dataset for entry in group]
        if len({name.partition("/")[0] for name in names}) < max(len(names), 2):
            continue
        joined.append(
            Together(
                a=group[0].a.title,
                b=group[0].b.title,
                protocol=group[0].a.protocol,
                datasets=tuple(names),
                metrics={name: mean_difference([entry.metrics[name] for entry in group]) for name in METRICS},
                adjusted={},
                exchanged={name: exchange_p([entry.scores[name] for entry in group]) for name in METRICS},
            )
        )
    adjusted = {name: holm([entry.metrics[name].p for entry in joined]) for name in METRICS}
    exchanged = {name: holm([entry.exchanged[name] for entry in joined]) for name in METRICS}
    return [
        replace(
            entry,
            adjusted={name: float(adjusted[name][i]) for name in METRICS},
            exchanged={name: float(exchanged[name][i]) for name in METRICS},
        )
        for i, entry in enumerate(joined)
    ]


def compare(results: Path, a: str, b: str) -> list[Comparison]:
    """Compares two rows on every dataset that both have.

    Args:
        results: Where rows are looked for that are named by words.
        a: A record, a folder of records, or words such as `backbone=swin,mode=agssp`.
        b: The same for the other row.

    Returns:
        One entry a dataset.

    Raises:
        UserError: Nothing or more than one row is meant, the two have nothing in common, or a record's detections or
            dataset are missing or not those it names.
    """
    left, right = (_by_block(select(results, what), what) for what in (a, b))
    shared = [block for block in left if block in right]
    if not shared:
        places = [
            ", ".join(sorted({f"{row.dataset} ({row.protocol})" for row in side.values()}))
            for side in (left, right)
        ]
        raise UserError(
            f"A and B share no dataset in one version under one protocol: A is on {places[0]}, B on {places[1]}."
        )
    pairs = [(left[block], right[block]) for block in shared]
    for one, other in pairs:
        if {entry.record.key for entry in one.records} & {entry.record.key for entry in other.records}:
            raise UserError(f"A and B hold the same record, {one.records[0].path}. Name two different rows.")
    return compare_pairs(pairs)


def compare_pairs(
    pairs: Sequence[tuple[Row, Row]], scores_of: Callable[[Row], RowScores] | None = None
) -> list[Comparison]:
    """Compares pairs of rows, each pair on one split; Holm's family is all pairs, for each metric.

    Args:
        pairs: Rows A and B.
        scores_of: Gives a row's scores; computes them by default.
    """
    read = scores_of or score_row
    found = [_difference(a, b, read(a), read(b)) for a, b in pairs]
    adjusted = {name: holm([entry.metrics[name].p for entry in found]) for name in METRICS}
    return [
        replace(entry, adjusted={name: float(adjusted[name][i]) for name in METRICS})
        for i, entry in enumerate(found)
    ]


def _difference(a: Row, b: Row, left: RowScores, right: RowScores) -> Comparison:
    metrics = {}
    for name in METRICS:
        found = difference(left.metrics[name], right.metrics[name], left.images)
        if found is None:
            raise UserError(f"{a.dataset}: {left.images} validation images are too few for an interval.")
        metrics[name] = found
    classes = {
        name: difference(scores, right.classes[name], left.images) for name, scores in left.classes.items()
    }
    known = {name: entry.p for name, entry in classes.items() if entry is not None}
    adjusted = dict(zip(known, holm(list(known.values())).tolist(), strict=True))
    scores = {name: (left.metrics[name], right.metrics[name]) for name in METRICS}
    return Comparison(a, b, metrics, {}, classes, adjusted, scores)


def select(results: Path, what: str) -> list[Row]:
    """Finds the rows that a user means.

    Args:
        results: Searched where `what` is words.
        what: A record, a folder of records, or `name=value` words joined by commas.

    Raises:
        UserError: No row is meant, or only rows of a protocol that no longer counts.
    """
    if "=" not in what:
        path = Path(what)
        if not path.exists():
            raise UserError(
                f"No record {what}. Name a record's folder, or a row by words: backbone=swin,mode=agssp."
            )
        return _valid(rows(path.parent if path.name == RECORD_FILE else path), what)
    words = [word.partition("=")[::2] for word in what.split(",")]
    for name, _ in words:
        if name not in _WORDS:
            raise unknown_name("word", name, _WORDS, see="python -m benchmark compare --help")
    found = [row for row in rows(results) if all(_fits(row, name, value) for name, value in words)]
    if not found:
        raise UserError(
            f"No row of {results} has {what}. Look at them: python -m benchmark report --results {results}"
        )
    return _valid(found, what)


def _valid(found: list[Row], what: str) -> list[Row]:
    valid = [row for row in found if row.invalid is None]
    if not valid:
        raise UserError(f"{what} is of {found[0].protocol}, which no longer counts: {found[0].invalid}")
    return valid


def _fits(row: Row, name: str, value: str) -> bool:
    mine = getattr(row, name)
    return mine == value or (name == "backbone" and mine.partition(":")[0] == value)


def _by_block(found: Iterable[Row], what: str) -> dict[tuple[str, str, str], Row]:
    blocks: dict[tuple[str, str, str], Row] = {}
    for row in found:
        if row.block in blocks:
            first = blocks[row.block]
            raise UserError(
                f"{what} means more than one row on {row.dataset}: {first.title} ({first.detector}, corpus "
                f"{first.corpus}) and {row.title} ({row.detector}, corpus {row.corpus}). Add words, or name a "
                "record's folder."
            )
        blocks[row.block] = row
    return blocks


def baseline_of(row: T, candidates: Iterable[T], mode: str | None) -> T | None:
    """Finds the row that another is measured against: the same detector and backbone, in one mode.

    Of several, the one of the row's own method counts; where that does not decide there is none.

    Args:
        row: Any row.
        candidates: Rows of its dataset and protocol.
        mode: Of the baseline; None takes `imagenet`, or `scratch` where the backbone has no such row.
    """
    kin = [one for one in candidates if (one.detector, one.backbone) == (row.detector, row.backbone)]
    if mode is None:
        mode = "imagenet" if any(one.mode == "imagenet" for one in kin) else "scratch"
    if row.mode == mode:
        return None
    there = [one for one in kin if one.mode == mode]
    own = [one for one in there if one.method == row.method] or there
    return own[0] if len(own) == 1 else None


def score_row(row: Row) -> RowScores:
    """Computes a row's numbers from its records' detections, on the split and on drawn images.

    Raises:
        UserError: Dataset or detections are missing, of another version, or not those that the record names.
    """
    truth = _labels(row.records[0].record.dataset)
    weights = np.concatenate(
        [np.ones((1, len(truth.image_ids)), np.uint16), draw_images(len(truth.image_ids))]
    )
    # (1 + draws, classes, 2, seeds): first on the split as it is.
    values = np.stack([_average_precision(entry, truth, weights) for entry in row.records], axis=-1)
    means = np.stack([mean_ap(values[..., s]) for s in range(values.shape[-1])], axis=-1)
    return RowScores(
        images=len(truth.image_ids),
        metrics={name: Scores(means[0, i], means[1:, i]) for i, name in enumerate(METRICS)},
        classes={
            name: Scores(values[0, k, 0], values[1:, k, 0])
            for k, name in enumerate(truth.classes)
            if np.isfinite(values[0, k, 0]).all()
        },
    )


def unusable(row: Row) -> str | None:
    """Says why nothing can be computed of a row's dataset on this machine; None where it can."""
    try:
        _labels(row.records[0].record.dataset)
    except UserError as error:
        return str(error)
    return None


def _labels(dataset: DatasetUsed) -> GroundTruth:
    check_fingerprint(dataset)
    return GroundTruth.from_dataset(datasets_builders.load(dataset.name, "validation"))


def _average_precision(
    stored: StoredRecord, truth: GroundTruth, weights: NDArray[np.uint16]
) -> NDArray[np.float64]:
    """Returns (draws, classes, 2), after making sure that the first draw gives the record's own numbers."""
    path, record = stored
    detections = Detections.load(path.parent / record.detections_files[0])
    values = MatchedSplit.of(truth, detections).average_precision(weights)
    recorded = [record.last.metrics.map50, record.last.metrics.map50_95]
    if (
        detections.sha256() != record.last.detections_sha256
        or np.abs(mean_ap(values[:1])[0] - recorded).max() > TOLERANCE
    ):
        raise UserError(
            f"{path}: its metrics are not those of its detections. See: python -m benchmark verify {path}"
        )
    return values
