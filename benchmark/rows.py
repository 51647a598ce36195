"""The records of a results folder as rows: all seeds of one cell, mean and standard error over them."""

from __future__ import annotations

import logging
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmark.protocol import invalid_reason
from benchmark.records import Quarantined, StoredRecord, iter_records
from datasets_builders.errors import UserError


@dataclass(frozen=True)
class Row:
    """All seeds of one cell.

    Attributes:
        protocol: Such as `mini-v1`.
        dataset: Name.
        detector: Name.
        backbone: `name:variant`.
        method: How the backbone was pretrained.
        mode: Such as `scratch`.
        maps: Source of the anomaly maps that guided the pretraining, or None.
        corpus: What it was pretrained on by this project's stages, or None.
        seeds: Seeds, ascending.
        map50: Mean of mAP@.5 at the last epoch, in percent.
        map50_error: Standard error of that mean; None with a single seed.
        map50_95: Mean of mAP@.5:.95 at the last epoch.
        map50_95_error: Its standard error.
        best_map50: Mean of mAP@.5 at the best epoch: the paper's choice, and optimistic.
        parameters: Trainable parameters.
        seconds: Mean wall time of finetuning.
        procedural: Whether the dataset's images are generated.
        fingerprint: Of the dataset; rows on different data are not compared.
        records: One a seed, in the order of `seeds`.
        label: What tells it from rows like it, in an ablation.
    """

    protocol: str
    dataset: str
    detector: str
    backbone: str
    method: str
    mode: str
    maps: str | None
    corpus: str | None
    seeds: tuple[int, ...]
    map50: float
    map50_error: float | None
    map50_95: float
    map50_95_error: float | None
    best_map50: float
    parameters: int
    seconds: float
    procedural: bool
    fingerprint: str
    records: tuple[StoredRecord, ...] = field(repr=False)
    label: str | None = None

    @property
    def block(self) -> tuple[str, str, str]:
        """Rows that share it may be compared: protocol, dataset, the dataset's fingerprint."""
        return self.protocol, self.dataset, self.fingerprint

    @property
    def technique(self) -> tuple[str | None, ...]:
        """What is the same on other datasets: detector, backbone, method, mode, maps, corpus, label."""
        return self.detector, self.backbone, self.method, self.mode, self.maps, self.corpus, self.label

    @property
    def invalid(self) -> str | None:
        """Why rows of this protocol no longer count and are compared with nothing; None where they do."""
        name, _, version = self.protocol.rpartition("-v")
        return invalid_reason(name, int(version))

    @property
    def title(self) -> str:
        """One line for people."""
        extras = [
            extra for extra in (self.method, self.maps, self.label) if extra not in ("-", "detection", None)
        ]
        return f"{self.backbone} {self.mode}" + (f" ({', '.join(map(str, extras))})" if extras else "")

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON, without its records."""
        values = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name not in ("records", "label")
        }
        return values | {"invalid": self.invalid}


def rows(results: Path) -> list[Row]:
    """Reads a results folder.

    Two records of one cell and seed under different inputs (another dataset version, say) are never averaged: they
    make two rows. A second record of one row and seed is a copy and counts once.

    Raises:
        UserError: No record is there.
    """
    groups: dict[tuple[str, ...], dict[int, StoredRecord]] = defaultdict(dict)
    log = logging.getLogger(__name__)
    damaged: list[Quarantined] = []
    for found in iter_records(results):
        if isinstance(found, Quarantined):
            damaged.append(found)
            continue
        record = found.record
        cell = record.cell
        key = (
            record.protocol.id,
            cell.dataset,
            cell.detector,
            f"{cell.backbone}:{cell.variant}",
            cell.method,
            cell.mode,
            record.row_key,
        )
        first = groups[key].setdefault(cell.seed, found)
        if first is not found:
            log.warning("left out: %s has the row and the seed of %s", found.path, first.path)
    for quarantined in damaged:
        log.warning("left out: %s", quarantined.reason)
    if not groups:
        raise UserError(
            f"No records in {results}. Make one: python -m benchmark run --backbone csp_darknet --mode scratch"
        )
    return [row_of(tuple(group[seed] for seed in sorted(group))) for _, group in sorted(groups.items())]


def row_of(stored: tuple[StoredRecord, ...]) -> Row:
    """Returns the row of records that are seeds of one cell, in the order of their seeds."""
    records = [entry.record for entry in stored]
    cell, pretraining = records[0].cell, records[0].pretraining
    map50 = [record.last.metrics.map50 for record in records]
    map50_95 = [record.last.metrics.map50_95 for record in records]
    return Row(
        protocol=records[0].protocol.id,
        dataset=cell.dataset,
        detector=cell.detector,
        backbone=f"{cell.backbone}:{cell.variant}",
        method=cell.method,
        mode=cell.mode,
        maps=pretraining.maps if pretraining else None,
        corpus=pretraining.corpus if pretraining else None,
        seeds=tuple(record.cell.seed for record in records),
        map50=statistics.fmean(map50),
        map50_error=standard_error(map50),
        map50_95=statistics.fmean(map50_95),
        map50_95_error=standard_error(map50_95),
        best_map50=statistics.fmean(record.best.metrics.map50 for record in records),
        parameters=records[0].parameters,
        seconds=statistics.fmean(record.cost["finetune"].seconds for record in records),
        procedural=records[0].dataset.procedural,
        fingerprint=records[0].dataset.fingerprint,
        records=stored,
    )


def standard_error(values: list[float]) -> float | None:
    """Returns the standard error of the mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
