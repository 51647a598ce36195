"""Whether a record is true: its metrics computed again from its detections and the dataset's labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import datasets_builders
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, Metrics, evaluate
from benchmark.records import RECORD_FILE, Record, iter_records, read_record
from datasets_builders.errors import UserError

TOLERANCE = 1e-9
"""Largest difference, in percentage points, of two computations that are called equal."""


class Verdict(StrEnum):
    """What verifying a record found."""

    EQUAL = "equal"
    """Its metrics are those of its detections."""
    DIFFERENT = "different"
    """They are not, or the detections are not those that it names."""
    IMPOSSIBLE = "cannot verify"
    """The record, its detections or its dataset are missing, damaged or of another version."""


_EXIT_CODES = {Verdict.EQUAL: 0, Verdict.DIFFERENT: 1, Verdict.IMPOSSIBLE: 2}


@dataclass(frozen=True)
class Verification:
    """The outcome for one record.

    Attributes:
        path: The record's file.
        verdict: What was found.
        reasons: Every difference, or why it cannot be verified; empty where equal.
    """

    path: Path
    verdict: Verdict
    reasons: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {"record": str(self.path), "verdict": self.verdict.value, "reasons": list(self.reasons)}


def verify(path: Path) -> Verification:
    """Computes a record's metrics again and compares every number.

    Args:
        path: `record.json`, or the folder that holds it; its detections lie beside it.

    Returns:
        What was found. Bad input is a verdict, not an exception.
    """
    path = path / RECORD_FILE if path.is_dir() else path
    try:
        record = read_record(path)
        stored = [Detections.load(path.parent / name) for name in record.detections_files]
        ground_truth = _ground_truth(record)
    except UserError as error:
        return Verification(path, Verdict.IMPOSSIBLE, (str(error),))
    reasons: list[str] = []
    names, results = ("last", "best"), (record.last, record.best)
    for at, result, detections in zip(names, results, stored, strict=True):
        if detections.sha256() != result.detections_sha256:
            reasons.append(f"{at}: its file does not hold the detections that the record names")
            continue
        try:
            metrics = evaluate(ground_truth, detections)
        except UserError as error:  # other images or classes than the dataset's
            reasons.append(f"{at}: {error}")
            continue
        reasons += [f"{at}: {difference}" for difference in _differences(result.metrics, metrics)]
    return Verification(path, Verdict.DIFFERENT if reasons else Verdict.EQUAL, tuple(reasons))


def _ground_truth(record: Record) -> GroundTruth:
    name = record.dataset.name
    here = datasets_builders.fingerprint(name)
    if here != record.dataset.fingerprint:
        raise UserError(
            f"the dataset differs: {name} has fingerprint {here[:12]} here, the record was measured on"
            f" {record.dataset.fingerprint[:12]}. Prepare the same version of the data."
        )
    return GroundTruth.from_dataset(datasets_builders.load(name, "validation"))


def _differences(recorded: Metrics, computed: Metrics) -> list[str]:
    """Lists every number that is not equal, by name."""
    left, right = _flat(recorded), _flat(computed)
    return [
        f"{name} is {left.get(name)} in the record and {right.get(name)} from its detections"
        for name in sorted(left.keys() | right.keys())
        if not _equal(left.get(name), right.get(name))
    ]


def _flat(metrics: Metrics) -> dict[str, float | None]:
    values = metrics.model_dump(exclude={"per_class"})
    for entry in metrics.per_class:
        values |= {
            f"{entry.name} {name}": value for name, value in entry.model_dump(exclude={"name"}).items()
        }
    return values


def _equal(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else abs(a - b) <= TOLERANCE


def verify_paths(paths: Iterable[Path]) -> int:
    """Verifies records and prints what was found, one line a record and one a difference.

    Args:
        paths: Records, or folders of them at any depth.

    Returns:
        The exit code: 1 where a record differs, else 2 where one cannot be verified, else 0.
    """
    codes = {0}
    for path in paths:
        inside = [entry.path for entry in iter_records(path)] if path.is_dir() else []
        for verification in map(verify, inside or [path]):
            print(f"{verification.verdict.value}: {verification.path}")
            for reason in verification.reasons:
                print(f"  {reason}")
            codes.add(_EXIT_CODES[verification.verdict])
    return 1 if 1 in codes else max(codes)
