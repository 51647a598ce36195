"""Whether a record is true: its metrics computed again from its detections and the dataset's labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import datasets_builders
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, Metrics, evaluate
from benchmark.records import RECORD_FILE, DatasetUsed, Quarantined, Record, read_record, record_files
from datasets_builders.errors import UserError

ANOMALY_FILE = "anomaly.json"
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


def verify_anomaly(path: Path) -> Verification:
    """Computes the metrics of a record of the anomaly benchmark again, from its maps and scores; see `verify`."""
    from agssp.map_inputs import open_images
    from benchmark.anomaly_data import SPLIT, read_truths
    from benchmark.anomaly_metrics import evaluate
    from benchmark.anomaly_outputs import Outputs
    from benchmark.anomaly_records import OUTPUTS_FILE, read_record

    try:
        record = read_record(path)
        outputs = Outputs.load(path.parent / OUTPUTS_FILE)
        if outputs.sha256() != record.outputs_sha256:
            return Verification(
                path, Verdict.DIFFERENT, ("its file does not hold the outputs that the record names",)
            )
        check_fingerprint(record.dataset)
        images = open_images(record.dataset.name, SPLIT)
        if tuple(images.ids) != outputs.image_ids:
            return Verification(path, Verdict.DIFFERENT, ("its outputs are not of the dataset's images",))
        computed = evaluate(outputs.maps, outputs.scores, read_truths(images), record.evaluation_size)
    except UserError as error:
        return Verification(path, Verdict.IMPOSSIBLE, (str(error),))
    left, right = _numbers(record.metrics.model_dump()), _numbers(computed.model_dump())
    reasons = tuple(_unequal(left, right, "outputs"))
    return Verification(path, Verdict.DIFFERENT if reasons else Verdict.EQUAL, reasons)


def _numbers(value: Any, name: str = "metrics") -> dict[str, float | None]:
    """Lists all numbers inside nested values, by their place."""
    if isinstance(value, dict):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {name: value}
    return {place: n for key, item in parts for place, n in _numbers(item, f"{name}.{key}").items()}


def check_fingerprint(dataset: DatasetUsed) -> None:
    """Makes sure that the data on this machine are those of a record.

    Raises:
        UserError: They are not.
    """
    here = datasets_builders.fingerprint(dataset.name)
    if here != dataset.fingerprint:
        raise UserError(
            f"the dataset differs: {dataset.name} has fingerprint {here[:12]} here, the record was measured on"
            f" {dataset.fingerprint[:12]}. Prepare the same version of the data."
        )


def _ground_truth(record: Record) -> GroundTruth:
    check_fingerprint(record.dataset)
    return GroundTruth.from_dataset(datasets_builders.load(record.dataset.name, "validation"))


def _differences(recorded: Metrics, computed: Metrics) -> list[str]:
    """Lists every number that is not equal, by name."""
    return _unequal(_flat(recorded), _flat(computed), "detections")


def _unequal(left: Mapping[str, float | None], right: Mapping[str, float | None], source: str) -> list[str]:
    return [
        f"{name} is {left.get(name)} in the record and {right.get(name)} from its {source}"
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
        for verification in map(_verify_file, _files(path)):
            print(f"{verification.verdict.value}: {verification.path}")
            for reason in verification.reasons:
                print(f"  {reason}")
            codes.add(_EXIT_CODES[verification.verdict])
    return 1 if 1 in codes else max(codes)


def _files(path: Path) -> list[Path]:
    """Returns the records of every kind in a folder, at any depth; a file, or an empty folder, itself."""
    found = [
        entry.path if isinstance(entry, Quarantined) else entry
        for name in (RECORD_FILE, ANOMALY_FILE)
        for entry in record_files(path, name)
    ]
    return list(dict.fromkeys(found)) or [path]


def _verify_file(path: Path) -> Verification:
    return verify_anomaly(path) if path.name == ANOMALY_FILE else verify(path)
