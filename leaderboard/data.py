"""The board's rows: what the paper reports, and what the records of a results folder measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmark.records import Quarantined, iter_records
from benchmark.reported import PAPER

_ROW = ["trust", "protocol", "backbone", "method", "mode", "detector", "dataset"]


@dataclass(frozen=True)
class Measured:
    """What a results folder holds.

    Attributes:
        rows: One a cell over all its seeds: `_ROW`, map50, map50_error, map50_95, map50_95_error (percent), seeds
            (how many), parameters_m (millions).
        damaged: Files that are no valid records, and why.
    """

    rows: pd.DataFrame
    damaged: tuple[Quarantined, ...]


def reported_rows() -> pd.DataFrame:
    """Returns the paper's Table 2, one row a technique and dataset; values in percent, no error is known."""
    table = pd.read_csv(PAPER, keep_default_na=False)
    table = table[(table["table"] == "table2") & table["metric"].isin(["map50", "map50_95"])]
    table = table.assign(value=pd.to_numeric(table["value"]), trust="reported", protocol="paper")
    wide = table.pivot_table(index=_ROW, columns="metric", values="value", sort=False).reset_index()
    return wide.rename_axis(columns=None)


def measured_rows(results: Path) -> Measured:
    """Reads a results folder; damaged records are set aside with their reason."""
    found, damaged = [], []
    for entry in iter_records(results):
        if isinstance(entry, Quarantined):
            damaged.append(entry)
            continue
        record = entry.record
        cell = record.cell
        found.append(
            {
                "trust": record.trust.value,
                "protocol": record.protocol.id,
                "backbone": f"{cell.backbone}:{cell.variant}",
                "method": cell.method,
                "mode": cell.mode,
                "detector": cell.detector,
                "dataset": cell.dataset,
                # Records of other data, rules or weights are never averaged with these.
                "row": record.row_key,
                "map50": record.last.metrics.map50,
                "map50_95": record.last.metrics.map50_95,
                "parameters_m": record.parameters / 1e6,
            }
        )
    columns = [*_ROW, "map50", "map50_error", "map50_95", "map50_95_error", "seeds", "parameters_m"]
    if not found:
        return Measured(pd.DataFrame(columns=columns), tuple(damaged))
    groups = pd.DataFrame(found).groupby([*_ROW, "row"], sort=True)
    rows = groups.agg(
        map50=("map50", "mean"),
        map50_error=("map50", "sem"),
        map50_95=("map50_95", "mean"),
        map50_95_error=("map50_95", "sem"),
        seeds=("map50", "size"),
        parameters_m=("parameters_m", "first"),
    ).reset_index()
    return Measured(rows[columns], tuple(damaged))
