"""Records of the anomaly benchmark: one detector on one dataset with one seed, immutable and checkable.

A record is a folder, `<results>/anomaly/<dataset>/<cell>-<key12>/`, with `anomaly.json` and the maps and scores that
its metrics were computed from (`outputs.parquet`). It appears whole, by one rename. See docs/anomaly.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, PositiveInt, model_validator

from benchmark.anomaly_metrics import AnomalyMetrics
from benchmark.anomaly_outputs import Outputs
from benchmark.environment import Environment, Text
from benchmark.record_schema import (
    DatasetUsed,
    Moment,
    Names,
    Part,
    Settings,
    Sha256,
    Slug,
    StageCost,
    Trust,
)
from benchmark.records import Quarantined, read_model, record_files, store_folder
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

RECORD_FILE = "anomaly.json"
OUTPUTS_FILE = "outputs.parquet"
FOLDER = "anomaly"


class AnomalyCell(Part):
    """Which cell of the anomaly benchmark this is."""

    detector: Slug
    """Such as `kead`."""
    encoder: Annotated[str, Field(max_length=200)]
    """As it was asked for, such as `base`; empty where the detector has none."""
    settings: Settings
    """Switches that are not at their defaults."""
    dataset: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}(/[a-z0-9][a-z0-9_-]{0,62})?$")]
    """Name, or `name/config`."""
    shots: Annotated[int, Field(ge=0, le=10_000)]
    """Normal images of each category; 0: zero-shot."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of the choice of normal images."""

    @property
    def folder(self) -> Path:
        """Place of the cell's records, and the beginning of their names."""
        encoder = re.sub(r"[^a-z0-9]+", "-", self.encoder.lower()).strip("-")[:60]
        name = "-".join(part for part in (self.detector, encoder) if part)
        return Path(FOLDER) / self.dataset.replace("/", "--") / f"{name}_{self.shots}shot_seed{self.seed}"


class AnomalyRecord(Part):
    """One finished cell."""

    schema_version: Literal[1] = 1
    """Of this format."""
    key: Sha256
    """Content key of `inputs`."""
    inputs: Settings
    """All that changes the numbers: versions, the detector's identity, data, shots, seed, rule of choice."""
    cell: AnomalyCell
    """Which cell it is."""
    dataset: DatasetUsed
    """On which data."""
    normals: Annotated[dict[Text, Names], Field(max_length=1000)]
    """Category -> ids of the training images that served as normal ones."""
    evaluation_size: Annotated[int, Field(ge=1, le=512)]
    """S: maps and masks are compared at S x S pixels."""
    metrics: AnomalyMetrics
    """On the validation split."""
    outputs_sha256: Sha256
    """Content hash of the maps and scores they were computed from (`Outputs.sha256`)."""
    images_per_second: Annotated[float, Field(gt=0)]
    """Images scored a second, once a category is prepared; without reading and decoding files."""
    batch_size: PositiveInt
    """Images at once."""
    cost: Annotated[dict[Slug, StageCost], Field(max_length=10)]
    """`fit`: preparing the categories; `score`: all images, with reading and decoding."""
    trust: Trust = Trust.MEASURED
    """How it came to be."""
    environment: Environment
    """With which software, on which machine."""
    created: Moment
    """When it was finished, UTC."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> AnomalyRecord:
        complaints = {
            "key is not the hash of inputs": content_key(self.inputs) != self.key,
            "a reported number is no record": self.trust is Trust.REPORTED,
            "cell and dataset name different datasets": self.cell.dataset != self.dataset.name,
            "metrics are not over the validation split": self.metrics.images
            != self.dataset.splits.get("validation"),
            "the normal images are not as many as the shots": any(
                len(ids) != self.cell.shots for ids in self.normals.values()
            ),
        }
        found = [complaint for complaint, holds in complaints.items() if holds]
        if found:
            raise ValueError("; ".join(found))
        return self

    @property
    def file(self) -> Path:
        """Where it belongs, relative to the results folder."""
        place = self.cell.folder
        return place.with_name(f"{place.name}-{self.key[:12]}") / RECORD_FILE


class StoredAnomalyRecord(NamedTuple):
    """A record and its file."""

    path: Path
    record: AnomalyRecord


def write_record(record: AnomalyRecord, outputs: Outputs, results: Path) -> Path:
    """Stores a record with its outputs; it appears whole or not at all, and never replaces another.

    Args:
        record: The finished cell.
        outputs: What its metrics were computed from.
        results: The results folder.

    Returns:
        The record's file; of the one that was there already, if there was.

    Raises:
        UserError: The folder cannot be written, or holds something damaged or different.
        ValueError: The outputs are not those of the record.
    """
    if record.outputs_sha256 != outputs.sha256():
        raise ValueError("the outputs are not the ones that the record names")
    path = results / record.file
    stored = store_folder(path, results, record, lambda folder: outputs.save(folder / OUTPUTS_FILE))
    if not stored and read_record(path).key != record.key:
        raise UserError(
            f"{path} is another experiment whose key begins alike. Choose another folder: --results DIR."
        )
    return path


def read_record(path: Path) -> AnomalyRecord:
    """Reads a record; anyone may have written it, so nothing in it is trusted.

    Args:
        path: `anomaly.json`, or the folder that holds it.

    Raises:
        UserError: Missing, too large, damaged, of another format, or contradicting itself; names the file.
    """
    return read_model(path / RECORD_FILE if path.is_dir() else path, AnomalyRecord)


def iter_records(results: Path) -> Iterator[StoredAnomalyRecord | Quarantined]:
    """Reads every record under a folder, in the order of their paths; one that is damaged stops nothing."""
    for path in record_files(results, RECORD_FILE):
        if isinstance(path, Quarantined):
            yield path
            continue
        try:
            yield StoredAnomalyRecord(path, read_record(path))
        except UserError as error:
            yield Quarantined(path, str(error))


def find_record(results: Path, key: str) -> StoredAnomalyRecord | None:
    """Looks a record up by its content key; None where there is none.

    Raises:
        UserError: Its place is taken by something damaged.
    """
    for path in sorted(results.glob(f"{FOLDER}/*/[!.]*-{key[:12]}/{RECORD_FILE}")):
        record = read_record(path)
        if record.key == key:
            return StoredAnomalyRecord(path, record)
    return None
