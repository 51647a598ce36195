"""The board's data: what the paper reports, and what the records of a folder or a Hub repository measured.

`open_board("results")` or `open_board("hub://org/results@<commit or tag>")` gives `rows`, one a cell over its seeds
with the paper's among them, and `load(record_id)`, everything about one seed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from benchmark import index
from benchmark.attestations import FOLDER as ATTESTATIONS_FOLDER
from benchmark.attestations import Finding
from benchmark.protocol import invalid_reason
from benchmark.records import StoredRecord, Trust, read_record
from benchmark.reported import reported_rows
from benchmark.rows import Row, row_of
from benchmark.sources import Source, open_source
from benchmark.submit.schema import RECORDS_FOLDER, SUBMISSIONS_FOLDER
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

PAPER_PROTOCOL = "paper"
"""Protocol of reported rows: single runs of the paper's own code, by its own splits."""

_CELL = [
    *("protocol", "track", "backbone", "variant", "detector", "method", "mode", "maps", "corpus", "dataset"),
]
ROW_COLUMNS = {
    "row_id": "object",
    "trust": "object",
    **dict.fromkeys(_CELL, "object"),
    "train_images": "Int64",
    "seeds": "object",
    **dict.fromkeys(
        (
            *("map50", "map50_error", "map50_95", "map50_95_error", "best_map50"),
            *("parameters_m", "images_per_second", "seconds"),
        ),
        "float64",
    ),
    **dict.fromkeys(
        (
            *("row_key", "fingerprint", "weights_sha256", "record_ids", "invalid_reason"),
            *("submission", "submission_slug", "created"),
        ),
        "object",
    ),
}
"""Columns of `Board.rows` and their types; see `Board`."""

_STRENGTH = {Trust.SUBMITTED.value: 0, Trust.MEASURED.value: 1, Trust.REPRODUCED.value: 2}


@dataclass(frozen=True)
class Board:
    """All that a source holds, as tables. Texts in them come from strangers: show them as text.

    Attributes:
        source: Where it comes from.
        rows: One row a cell over its seeds, reported ones first:

            - `row_id` for addresses; `trust`: `reported`, `measured`, `submitted` or `reproduced`;
            - `protocol` (`paper` for reported rows), `track` (`real` or `procedural`: never side by side), `backbone`,
              `variant`, `detector`, `method`, `mode`, `maps` and `corpus` (None where there is none), `dataset`,
              `train_images`;
            - `seeds`: a tuple, ascending; empty for reported rows; `record_ids`: as `seeds`;
            - `map50`, `map50_95`: percent, mean at the last epoch (the paper's: single runs at the best);
              `map50_error`, `map50_95_error`: standard errors over seeds, NaN with one; `best_map50`;
            - `parameters_m` (millions), `images_per_second` (NaN: unknown), `seconds` (of one finetuning);
            - `row_key`, `fingerprint` (of the dataset: rows with another one are not compared), `weights_sha256`;
            - `invalid_reason`: why the protocol no longer counts; None where it does;
            - `submission` (name; None where nobody sent it), `submission_slug`, `created` (ISO 8601, UTC, of the
              newest record).
        records: One row a valid record: `record_id`, `row_id`, `path`, `copy_of` (the record that has the same row and
            seed and is counted in its place, else None) and what `benchmark.index.RECORDS` keeps.
        submissions: One row a submission: `slug`, `name`, `backbone`, `method`, `method_text`, `licence`,
            `pretrained_on`, `contamination` (both joined by semicolons), `weights_sha256`, `created`.
        anomaly: One row a detector, dataset and shots of the anomaly benchmark; see `leaderboard.anomaly`.
        quarantined: `path` and `reason` of every file that is not what its name says.
    """

    source: Source
    rows: pd.DataFrame
    records: pd.DataFrame
    submissions: pd.DataFrame
    anomaly: pd.DataFrame
    quarantined: pd.DataFrame

    @cached_property
    def state(self) -> str:
        """Hash of what the tables were made from; equal states show equal pages."""
        stamps = self.records[["path", "size", "mtime_ns", "trust"]].to_csv(index=False)
        return content_key(
            [stamps, self.submissions.to_csv(index=False), self.quarantined.to_csv(index=False)]
        )

    def load(self, record_id: str) -> StoredRecord:
        """Reads one record; its detections lie beside it (`stored.path.parent / name` of `record.detections_files`).

        Args:
            record_id: Of `records` or of a row's `record_ids`.

        Raises:
            UserError: There is no such record, or it was damaged or removed since.
        """
        found = self.records.loc[self.records["record_id"] == record_id, "path"]
        if found.empty:
            raise UserError(f"No record {record_id!r} in {self.source.name}.")
        path = self.source.beside(self.source.root / found.iloc[0])
        return StoredRecord(path, read_record(path))

    def row(self, row_id: str) -> Row:
        """Reads the records of one row, as `benchmark.compare` takes them.

        Raises:
            UserError: There is no such row, or it is the paper's, which has no records.
        """
        found = self.rows.loc[self.rows["row_id"] == row_id]
        if found.empty:
            raise UserError(f"No row {row_id!r} in {self.source.name}.")
        ids = found.iloc[0]["record_ids"]
        if not ids:
            raise UserError("The paper printed this row; it left no records or detections.")
        return row_of(tuple(self.load(record_id) for record_id in ids))


def open_board(source: str | Path, *, revision: str | None = None) -> Board:
    """Opens a board; quick where its index is up to date.

    Args:
        source: A folder of records, or `hub://ORG/NAME@REVISION`.
        revision: Of a Hub repository whose address names none.

    Raises:
        UserError: The repository cannot be reached. A folder that is missing is an empty board, and damaged files are
            quarantined.
    """
    from leaderboard.anomaly import anomaly_rows

    opened = open_source(source, revision)
    root = opened.root
    listing, unreadable = index.scan(root)
    records, bad_records = _split(index.refresh(root, index.RECORDS, listing))
    submissions, bad_submissions = _split(index.refresh(root, index.SUBMISSIONS, listing))
    attestations, bad_attestations = _split(index.refresh(root, index.ATTESTATIONS, listing))
    inside = attestations["path"].str.startswith(f"{ATTESTATIONS_FOLDER}/")
    records, misplaced = _with_submissions(records, submissions)
    records = _with_trust(records, attestations[inside])
    records = _with_rows(records)
    anomaly, bad_anomaly = anomaly_rows(root, listing)
    bad = [
        *(bad_records, bad_submissions, bad_attestations, misplaced, bad_anomaly),
        pd.DataFrame(unreadable, columns=["path", "reason"]),
    ]
    rows = pd.concat([_reported(), _measured(records)], ignore_index=True).astype(ROW_COLUMNS)
    return Board(
        opened,
        _with_none(rows),
        _with_none(records),
        submissions.drop(columns=["size", "mtime_ns", "reason"]),
        anomaly,
        pd.concat([part for part in bad if len(part)] or [bad_records], ignore_index=True),
    )


def _with_none(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table with None for texts that are not there; only numbers are NaN."""
    texts = table.columns[table.dtypes == "object"]
    return table.assign(**{name: table[name].where(table[name].notna(), None) for name in texts})


def _split(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Separates what is valid from path and reason of what is not."""
    bad = table["reason"].notna()
    return table[~bad].reset_index(drop=True), table.loc[bad, ["path", "reason"]].reset_index(drop=True)


def _with_submissions(records: pd.DataFrame, submissions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gives each record the submission whose folder it lies in; those that pretend to lie elsewhere are set aside."""
    names = {
        PurePosixPath(path).parent.as_posix(): name for path, name in submissions[["path", "name"]].to_numpy()
    }
    slugs = {
        PurePosixPath(path).parent.as_posix(): slug for path, slug in submissions[["path", "slug"]].to_numpy()
    }
    owners = records["path"].str.extract(rf"^((?:.*/)?{SUBMISSIONS_FOLDER}/[^/]+)/", expand=False)
    place = records["path"].str.replace(r"/?[^/]+$", "", regex=True)
    inside = owners.isna() | (place == owners + f"/{RECORDS_FOLDER}/" + records["expected_path"])
    known = owners.isna() | owners.isin(names)
    records = records.assign(
        record_id=place,
        submission=owners.map(names).astype("object"),
        submission_slug=owners.map(slugs).astype("object"),
    )
    bad = records.loc[~(inside & known), ["path"]].assign(
        reason=lambda found: found["path"] + ": lies in the folder of a submission that does not hold it."
    )
    return records[inside & known].reset_index(drop=True), bad


def _with_trust(records: pd.DataFrame, attestations: pd.DataFrame) -> pd.DataFrame:
    """What somebody sent is `submitted`, whatever it says of itself; `reproduced` is only what an attestation says."""
    trust = records["trust"].where(records["submission"].isna(), Trust.SUBMITTED.value)
    trust = trust.where(trust != Trust.REPRODUCED.value, Trust.SUBMITTED.value)
    agreed: dict[str, set[str]] = {}
    latest = attestations.sort_values("created").drop_duplicates("row_key", keep="last")
    for row_key, finding, claimed in latest[["row_key", "finding", "claimed"]].to_numpy():
        if finding == Finding.REPRODUCED:
            agreed[row_key] = set(claimed)
    attested = [
        detections in agreed.get(row_key, ())
        for row_key, detections in records[["row_key", "detections_sha256"]].to_numpy()
    ]
    return records.assign(
        trust=trust.mask(pd.Series(attested, index=records.index, dtype=bool), Trust.REPRODUCED.value)
    )


def _with_rows(records: pd.DataFrame) -> pd.DataFrame:
    """Names the row of each record, and which are second records of one row and seed."""
    owner = records["submission_slug"].fillna("")
    row_ids = records["row_key"].str.slice(0, 16) + owner.where(owner == "", "-" + owner)
    records = records.assign(row_id=row_ids.astype("object"))
    first = records.groupby(["row_id", "seed"], sort=False)["record_id"].transform("first")
    return records.assign(copy_of=first.where(first != records["record_id"], None))


def _measured(records: pd.DataFrame) -> pd.DataFrame:
    counted = records[records["copy_of"].isna()].sort_values(["row_id", "seed"], ignore_index=True)
    if counted.empty:
        return pd.DataFrame(columns=list(ROW_COLUMNS))
    groups = counted.groupby("row_id", sort=False)
    carried = [*_CELL, "parameters_m", "row_key", "fingerprint", "weights_sha256", "train_images"]
    rows = groups[[*carried, "submission", "submission_slug"]].first()
    rows[["map50", "map50_95", "best_map50", "seconds"]] = groups[
        ["map50", "map50_95", "best_map50", "seconds"]
    ].mean()
    rows[["map50_error", "map50_95_error"]] = groups[["map50", "map50_95"]].sem().to_numpy()
    weakest = counted["trust"].map(_STRENGTH).groupby(counted["row_id"], sort=False).min()
    rows["trust"] = weakest.map({strength: trust for trust, strength in _STRENGTH.items()})
    bounds = [*np.flatnonzero(~counted["row_id"].duplicated()), len(counted)]
    for name, of in (("seeds", "seed"), ("record_ids", "record_id"), ("created", "created")):
        values = counted[of].tolist()
        groups_of = [tuple(values[first:end]) for first, end in itertools.pairwise(bounds)]
        rows[name] = [max(group) for group in groups_of] if name == "created" else groups_of
    reasons = {
        (name, version): invalid_reason(name, int(version))
        for name, version in counted[["protocol_name", "protocol_version"]].drop_duplicates().to_numpy()
    }
    versions = groups[["protocol_name", "protocol_version"]].first()
    rows["invalid_reason"] = [reasons[name, version] for name, version in versions.to_numpy()]
    rows["images_per_second"] = float("nan")  # no record holds it
    rows = rows.reset_index().sort_values(["protocol", "dataset", "map50"], ascending=[True, True, False])
    return rows.reindex(columns=list(ROW_COLUMNS))


def _reported() -> pd.DataFrame:
    rows = []
    for entry in reported_rows():
        backbone, _, variant = entry.backbone.partition(":")
        cell = [entry.detector, entry.backbone, entry.method, entry.mode, entry.dataset]
        rows.append(
            {
                "row_id": "paper-" + content_key(cell)[:16],
                "trust": Trust.REPORTED.value,
                "protocol": PAPER_PROTOCOL,
                "track": "real",
                "backbone": backbone,
                "variant": variant,
                "detector": entry.detector,
                "method": entry.method,
                "mode": entry.mode,
                "dataset": entry.dataset,
                "seeds": (),
                "map50": entry.map50,
                "map50_95": entry.map50_95,
                "record_ids": (),
            }
        )
    return pd.DataFrame(rows, columns=list(ROW_COLUMNS))
