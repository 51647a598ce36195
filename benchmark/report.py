"""The records of a results folder as rows: mean and standard error over seeds."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmark.records import Quarantined, Record, iter_records
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

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)


def rows(results: Path) -> list[Row]:
    """Reads a results folder.

    Two records of one cell and seed under different inputs (another dataset version, say) are never averaged: they
    make two rows.

    Raises:
        UserError: No record is there.
    """
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
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
        groups[key].append(record)
    for quarantined in damaged:
        logging.getLogger(__name__).warning("left out: %s", quarantined.reason)
    if not groups:
        raise UserError(
            f"No records in {results}. Make one: python -m benchmark run --backbone csp_darknet --mode scratch"
        )
    return [_row(key, group) for key, group in sorted(groups.items())]


def _row(key: tuple[str, ...], records: list[Record]) -> Row:
    protocol, dataset, detector, backbone, method, mode, _ = key
    pretraining = records[0].pretraining
    map50 = [record.last.metrics.map50 for record in records]
    map50_95 = [record.last.metrics.map50_95 for record in records]
    return Row(
        protocol=protocol,
        dataset=dataset,
        detector=detector,
        backbone=backbone,
        method=method,
        mode=mode,
        maps=pretraining.maps if pretraining else None,
        corpus=pretraining.corpus if pretraining else None,
        seeds=tuple(sorted(record.cell.seed for record in records)),
        map50=statistics.fmean(map50),
        map50_error=standard_error(map50),
        map50_95=statistics.fmean(map50_95),
        map50_95_error=standard_error(map50_95),
        best_map50=statistics.fmean(record.best.metrics.map50 for record in records),
        parameters=records[0].parameters,
        seconds=statistics.fmean(record.cost["finetune"].seconds for record in records),
    )


def standard_error(values: list[float]) -> float | None:
    """Returns the standard error of the mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def print_rows(found: list[Row]) -> None:
    """Prints rows as one table for each protocol and dataset."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for (protocol, dataset), group in itertools.groupby(found, key=lambda row: (row.protocol, row.dataset)):
        table = Table(title=f"{dataset}, {protocol}", title_justify="left", title_style="bold", box=None)
        for column in ("backbone", "mode", "method", "maps", "seeds"):
            table.add_column(column)
        for column in ("mAP@.5", "mAP@.5:.95", "best @.5", "params", "time"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in group:
            table.add_row(
                row.backbone,
                row.mode,
                row.method,
                row.maps or "-",
                " ".join(str(seed) for seed in row.seeds),
                _with_error(row.map50, row.map50_error),
                _with_error(row.map50_95, row.map50_95_error),
                f"{row.best_map50:.1f}",
                f"{row.parameters / 1e6:.1f}M",
                f"{row.seconds:.0f} s",
            )
        console.print(table)
        console.print()


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:.1f}" if error is None else f"{mean:.1f} ± {error:.1f}"
