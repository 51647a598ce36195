"""The board's rows of the anomaly benchmark: the paper's Table 4, and the records of a results folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmark import index
from benchmark.records import Quarantined, Trust
from benchmark.reported import PAPER
from benchmark.submit.schema import SUBMISSIONS_FOLDER

_ROW = ["trust", "detector", "encoder", "switches", "shots", "dataset"]
_METRICS = ["image_auroc", "pixel_auroc"]
_MEASURED = [*_METRICS, "pixel_aupro", "mask_iou", "images_per_second"]
COLUMNS = [*_ROW, *_MEASURED, "seeds"]
_SHOTS = {"zero": "0", "few": "1-4"}
"""The paper does not say how many normal images its few are."""


@dataclass(frozen=True)
class Measured:
    """What a results folder holds.

    Attributes:
        rows: `COLUMNS`, one row a cell over all its seeds.
        damaged: Files that are no valid records, and why.
    """

    rows: pd.DataFrame
    damaged: tuple[Quarantined, ...]


def anomaly_rows(results: Path, listing: index.Listing | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the paper's rows and the measured ones under one head, and what is damaged.

    Args:
        results: The results folder.
        listing: As of `measured_anomaly_rows`.

    Returns:
        `COLUMNS`, numbers in percent, NaN where there are none (`seeds` is 0 for reported rows); and `path`, `reason`.
    """
    measured = measured_anomaly_rows(results, listing)
    reported = reported_anomaly_rows().assign(seeds=0)
    rows = pd.concat([reported, measured.rows], ignore_index=True)
    damaged = [(entry.path.relative_to(results).as_posix(), entry.reason) for entry in measured.damaged]
    return rows[COLUMNS], pd.DataFrame(damaged, columns=["path", "reason"])


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


def measured_anomaly_rows(results: Path, listing: index.Listing | None = None) -> Measured:
    """Reads a results folder; damaged records are set aside with their reason.

    Args:
        results: The results folder.
        listing: Of `benchmark.index.scan`, where it was made already.

    Returns:
        One row a cell over all its seeds: `_ROW`, `_MEASURED` (means; NaN where a number does not exist), seeds (how
        many). Records of other data are never averaged.
    """
    table = index.refresh(results, index.ANOMALY, listing)
    bad = table["reason"].notna()
    damaged = tuple(
        Quarantined(results / path, why) for path, why in table.loc[bad, ["path", "reason"]].to_numpy()
    )
    # Of records of one cell and seed, which somebody sent twice, say, one counts.
    kept = _with_trust(table[~bad]).drop_duplicates([*_ROW, "fingerprint", "seed"])
    groups = kept.groupby([*_ROW, "fingerprint"], sort=True)
    rows = groups[_MEASURED].mean().assign(seeds=groups.size()).reset_index()
    return Measured(rows.astype({"seeds": "int64"})[COLUMNS], damaged)


def _with_trust(records: pd.DataFrame) -> pd.DataFrame:
    """What somebody sent is `submitted`, whatever it says of itself; no attestation is of such a record."""
    sent = [
        SUBMISSIONS_FOLDER in path.split("/")[:-1] or trust == Trust.REPRODUCED
        for path, trust in records[["path", "trust"]].to_numpy()
    ]
    return records.assign(
        trust=records["trust"].mask(pd.Series(sent, index=records.index, dtype=bool), "submitted")
    )
