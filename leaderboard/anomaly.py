"""The board's rows of the anomaly benchmark: the paper's Table 4, and the records of a results folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmark.anomaly_records import iter_records
from benchmark.records import Quarantined
from benchmark.reported import PAPER
from leaderboard.data import Measured

_ROW = ["trust", "detector", "encoder", "switches", "shots", "dataset"]
_METRICS = ["image_auroc", "pixel_auroc"]
_MEASURED = [*_METRICS, "pixel_aupro", "mask_iou", "images_per_second"]
_SHOTS = {"zero": "0", "few": "1-4"}
"""The paper does not say how many normal images its few are."""


def reported_anomaly_rows() -> pd.DataFrame:
    """Returns the paper's Table 4, one row a detector, encoder and dataset: `_ROW` and `_METRICS`, in percent."""
    table = pd.read_csv(PAPER, keep_default_na=False)
    table = table[table["table"] == "table4"]
    # note: encoder=base;shot=few;defect_features;vv_attention
    notes = table["note"].str.split(";")
    table = pd.DataFrame(
        {
            "trust": "reported",
            "detector": table["backbone"],  # where the file keeps the name of what a row is about
            "encoder": [parts[0].removeprefix("encoder=") for parts in notes],
            "switches": [", ".join(parts[2:]) for parts in notes],
            "shots": [_SHOTS[parts[1].removeprefix("shot=")] for parts in notes],
            "dataset": table["dataset"],
            "metric": table["metric"],
            "value": pd.to_numeric(table["value"]),
        }
    )
    wide = table.pivot_table(index=_ROW, columns="metric", values="value", sort=False).reset_index()
    return wide.rename_axis(columns=None)[[*_ROW, *_METRICS]]


def measured_anomaly_rows(results: Path) -> Measured:
    """Reads a results folder; damaged records are set aside with their reason.

    Returns:
        One row a cell over all its seeds: `_ROW`, `_MEASURED` (means; NaN where a number does not exist), seeds (how
        many). Records of other data are never averaged.
    """
    found, damaged = [], []
    for entry in iter_records(results):
        if isinstance(entry, Quarantined):
            damaged.append(entry)
            continue
        record = entry.record
        cell, metrics = record.cell, record.metrics
        found.append(
            {
                "trust": record.trust.value,
                "detector": cell.detector,
                "encoder": cell.encoder,
                "switches": ", ".join(f"{name}={cell.settings[name]}" for name in sorted(cell.settings)),
                "shots": str(cell.shots),
                "dataset": cell.dataset,
                "fingerprint": record.dataset.fingerprint,
                "image_auroc": metrics.image.auroc if metrics.image else None,
                "pixel_auroc": metrics.pixel.auroc if metrics.pixel else None,
                "pixel_aupro": metrics.pixel.aupro if metrics.pixel else None,
                "mask_iou": metrics.mask_iou.adaptive.iou if metrics.mask_iou else None,
                "images_per_second": record.images_per_second,
            }
        )
    columns = [*_ROW, *_MEASURED, "seeds"]
    if not found:
        return Measured(pd.DataFrame(columns=columns), tuple(damaged))
    table = pd.DataFrame(found).astype(dict.fromkeys(_MEASURED, "float64"))
    groups = table.groupby([*_ROW, "fingerprint"], sort=True)
    means = groups[_MEASURED].mean()
    rows = means.assign(seeds=groups.size()).reset_index()
    return Measured(rows[columns], tuple(damaged))
