"""Finetunes a row's weights again and attests what came of it; the records themselves stay as they are."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baselines import weights as weights_sources
from benchmark.attestations import Attestation, attest, interval
from benchmark.modes import Choice
from benchmark.records import RECORD_FILE, Record, StoredRecord, iter_records, read_record
from benchmark.submit.loading import weights_file
from benchmark.submit.schema import (
    RECORDS_FOLDER,
    SUBMISSION_FILE,
    SUBMISSIONS_FOLDER,
    read_submission,
)
from datasets_builders import storage
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key, file_sha256


@dataclass(frozen=True)
class Rerun:
    """A row that was finetuned again.

    Attributes:
        title: What it is.
        path: The attestation's file.
        attestation: What it holds.
    """

    title: str
    path: Path
    attestation: Attestation

    def text(self) -> str:
        """Returns what was found, in words."""
        found = self.attestation
        claimed = statistics.fmean(entry.map50 for entry in found.claimed)
        new = statistics.fmean(entry.map50 for entry in found.rerun)
        allowed = interval(found.rerun, len(found.claimed))
        between = (
            "no interval: one new seed"
            if allowed is None
            else f"allowed {allowed[0]:.2f} to {allowed[1]:.2f}"
        )
        return (
            f"{found.finding.value}: {self.title}\n  mAP@.5 claimed {claimed:.2f} over {len(found.claimed)} seeds, "
            f"again {new:.2f} over {len(found.rerun)}; {between}\n  {self.path}"
        )


def rerun(path: Path, results: Path | None, weights: Path | None, device: str) -> list[Rerun]:
    """Finetunes every row of a submission, or the row of a record, again, with the same seeds.

    Args:
        path: A submission's folder, or a record: its file or folder.
        results: Results folder that takes the attestation; None for the one that the records lie in.
        weights: The weights, where neither the submission nor the record's source leads to them.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: There are no such records or weights, or a cell failed.
    """
    if (path / SUBMISSION_FILE).is_file():
        spec = _submitted_weights(path, weights)
        records = [s.record for s in iter_records(path / RECORDS_FOLDER) if isinstance(s, StoredRecord)]
        at_home = path.resolve().parent
        root = results or (at_home.parent if at_home.name == SUBMISSIONS_FOLDER else None)
        if root is None:
            raise UserError(
                f"{path} lies in no results folder: say where the attestation goes, with --results DIR"
            )
        choices = {record.row_key: _custom(record, spec) for record in records}
    else:
        file = path / RECORD_FILE if path.is_dir() else path
        record = read_record(file)
        home = _home(file, record)
        root = results or home
        records = [
            stored.record
            for stored in iter_records(home / record.protocol.id / file.resolve().parents[1].name)
            if isinstance(stored, StoredRecord) and stored.record.row_key == record.row_key
        ]
        choices = {record.row_key: _choice(record, weights)}
    if not records:
        raise UserError(f"There are no records in {path}.")
    rows = itertools.groupby(sorted(records, key=lambda r: (r.row_key, r.cell.seed)), key=lambda r: r.row_key)
    return [_row(list(group), choices[row_key], root, device) for row_key, group in rows]


def _home(file: Path, record: Record) -> Path:
    """Returns the results folder that a record lies in, at its place."""
    folder = file.resolve().parent
    if folder.parts[-3:-1] != record.folder.parts[:2]:
        raise UserError(f"{file} lies in no results folder: there it would be {record.folder / file.name}.")
    home = folder.parents[2]
    if (home.parent / SUBMISSION_FILE).is_file():
        raise UserError(f"{file} belongs to a submission: run all of it again, verify --rerun {home.parent}")
    return home


def _row(claimed: Sequence[Record], choice: Choice, root: Path, device: str) -> Rerun:
    from benchmark.run import run_cells

    first = claimed[0]
    scratch = storage.home() / "reruns" / content_key([record.key for record in claimed])[:16]
    outcome = run_cells(
        backbone=f"{first.cell.backbone}:{first.cell.variant}",
        choice=choice,
        datasets=[first.cell.dataset],
        detector=first.cell.detector,
        protocol_name=first.protocol.id,
        seeds=[record.cell.seed for record in claimed],
        device=device,
        results=scratch,
        dry_run=False,
    )
    failed = [entry["reason"] for entry in outcome["cells"] if entry["status"] == "failed"]
    if failed:
        raise UserError(f"A cell failed: {failed[0]}. Nothing is attested.")
    new = [read_record(Path(entry["record"])) for entry in outcome["cells"]]
    if new[0].dataset.fingerprint != first.dataset.fingerprint:
        raise UserError(
            f"{first.cell.dataset} is another version here than the record's: nothing is attested."
        )
    path, attestation = attest(claimed, new, root)
    return Rerun(f"{first.cell.folder.rpartition('_')[0]} on {first.cell.dataset}", path, attestation)


def _submitted_weights(folder: Path, given: Path | None) -> str:
    submission = read_submission(folder)
    path = weights_file(folder, given)
    _check(path, submission.weights.sha256)
    return str(path)


def _custom(record: Record, spec: str) -> Choice:
    return Choice("custom", method=record.cell.method if record.cell.method != "-" else "none", weights=spec)


def _choice(record: Record, given: Path | None) -> Choice:
    """Returns what the record's training began with, from where it can be had."""
    if record.weights is None:
        return Choice("scratch")
    if given is not None:
        _check(given, record.weights.sha256)
        spec = str(given)
    else:
        spec = record.weights.source
        if not spec.startswith(("hub://", "artifact:")) and spec not in weights_sources.public_names():
            raise UserError(f"The record's weights were a file, {spec!a}: give it with --weights FILE")
    if record.cell.mode in ("imagenet", "coco"):
        method = record.cell.method if record.cell.mode == "imagenet" else None
        return Choice(record.cell.mode, method=method, weights=spec)
    return _custom(record, spec)


def _check(path: Path, sha256: str) -> None:
    if file_sha256(path) != sha256:
        raise UserError(f"{path} is not the weights of the record: its sha256 is not {sha256[:12]}...")
