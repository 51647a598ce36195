"""Makes a submission's folder: weights, the records that they were measured by, a card, a statement."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from baselines import backbones, weights
from baselines.weights import files
from benchmark import protocol as protocols
from benchmark.modes import Choice
from benchmark.record_schema import Record, Trust, WeightsReport, to_json
from benchmark.records import RECORD_FILE, StoredRecord, iter_records
from benchmark.submit import card
from benchmark.submit.contamination import contamination
from benchmark.submit.loading import WeightsCheck
from benchmark.submit.schema import (
    CARD_FILE,
    RECORDS_FOLDER,
    SUBMISSION_FILE,
    WEIGHTS_FILE,
    Statement,
    Submission,
    SubmittedFile,
    SubmittedWeights,
)
from benchmark.submit.validate import Report, validate
from datasets_builders import registry, storage
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file, atomic_folder, file_sha256


@dataclass(frozen=True)
class Cells:
    """Which cells the weights are measured by, where no finished records are given.

    Attributes:
        protocol: Name, or `auto`.
        detector: Name.
        datasets: Names; None for the protocol's first, `["all"]` for all of its.
        seeds: Seeds; None for the protocol's.
        device: `auto`, `cpu` or `cuda`.
    """

    protocol: str = "auto"
    detector: str = "yolov8"
    datasets: list[str] | None = None
    seeds: list[int] | None = None
    device: str = "auto"


def state(**values: Any) -> Statement:
    """Builds a statement from what a user typed.

    Raises:
        UserError: A name or text that cannot stand as it is; says which and why.
    """
    try:
        return Statement.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UserError(f"{option}: {first['msg'].removeprefix('Value error, ')}.") from None


def prepare(
    source: str, statement: Statement, cells: Cells, records: Path | None, out: Path
) -> tuple[Path, Report]:
    """Makes a submission's folder; it appears whole and valid, or not at all.

    Args:
        source: The weights: a file, or another address that `baselines.weights.resolve` knows.
        statement: What the submitter says.
        cells: What to run, unless records are given.
        records: Folder of finished records of these very weights; None to run the cells.
        out: The folder to make.

    Returns:
        The folder, and what validating it found (nothing that fails).

    Raises:
        UserError: `out` is there already, the weights do not fit, a cell failed, or no record is of these weights.
    """
    if out.exists():
        raise UserError(f"{out} is there already. Remove it, or choose another folder: --out DIR")
    for name in filter(registry.is_own, cells.datasets or ()):
        raise UserError(f"{name} is a set of your own images: nobody else could check a row on it.")
    name, _, variant = statement.backbone.partition(":")
    backbones.get(name, variant)
    ours = _as_safetensors(weights.resolve(source).path)
    sha256 = WeightsCheck(ours).local.sha256
    measured = _run(ours, statement, cells) if records is None else _finished(records, sha256)
    with atomic_folder(out) as folder:
        shutil.copyfile(ours, folder / WEIGHTS_FILE)
        sent = [_copy_record(stored, folder / RECORDS_FOLDER) for stored in measured]
        submission = _submission(statement, WeightsCheck(folder / WEIGHTS_FILE), sent, folder)
        (folder / SUBMISSION_FILE).write_text(to_json(submission), encoding="utf-8")
        (folder / CARD_FILE).write_text(card.render(submission, sent), encoding="utf-8")
        report = validate(folder)
        if report.complaints:
            raise UserError("Nothing was prepared:\n  " + "\n  ".join(report.complaints))
    return out, report


def full_name(backbone: str, protocol: str) -> str:
    """Returns `name:variant` of a backbone, in the size that a protocol uses where none is named."""
    name, _, variant = backbone.partition(":")
    known = protocols.load("mini-v1" if protocol == "auto" else protocol).variants
    return backbones.get(name, variant or known.get(name, "")).id


def _as_safetensors(path: Path) -> Path:
    """Returns the file itself, or a copy of it as safetensors where it is a pickle of torch."""
    with path.open("rb") as file:
        if file.read(9)[8:9] == b"{":
            return path
    tensors, _ = files.read(path)
    from safetensors.torch import save_file

    target = storage.home() / "submissions" / file_sha256(path) / WEIGHTS_FILE
    if not target.is_file():
        plain = {name: tensors[name].clone() for name in sorted(tensors)}
        with atomic_file(target) as temporary:
            save_file(plain, temporary)
    return target


def _run(path: Path, statement: Statement, cells: Cells) -> list[StoredRecord]:
    """Runs the protocol's cells; finished ones of an earlier, interrupted call are there already."""
    from benchmark.run import run_cells

    results = storage.home() / "submissions" / file_sha256(path) / "results"
    outcome = run_cells(
        backbone=statement.backbone,
        choice=Choice("custom", method=statement.method, weights=str(path)),
        datasets=cells.datasets,
        detector=cells.detector,
        protocol_name=cells.protocol,
        seeds=cells.seeds,
        device=cells.device,
        results=results,
        dry_run=False,
    )
    failed = [entry["reason"] for entry in outcome["cells"] if entry["status"] == "failed"]
    if failed:
        raise UserError(f"A cell failed: {failed[0]}. Nothing was prepared.")
    keys = {entry["key"] for entry in outcome["cells"]}
    return [stored for stored in _valid(results) if stored.record.key in keys]


def _valid(results: Path) -> list[StoredRecord]:
    return [stored for stored in iter_records(results) if isinstance(stored, StoredRecord)]


def _finished(results: Path, sha256: str) -> list[StoredRecord]:
    found = [s for s in _valid(results) if s.record.weights and s.record.weights.sha256 == sha256]
    if not found:
        raise UserError(
            f"No record in {results} was measured with these weights (sha256 {sha256[:12]}).\n  Leave --records out to"
            " measure them now. Records of a pickle do not count: it is stored as safetensors, another file."
        )
    return found


def _copy_record(stored: StoredRecord, folder: Path) -> Record:
    """Copies a record with its detections, as one that is submitted; returns it."""
    record = stored.record.model_copy(update={"trust": Trust.SUBMITTED})
    target = folder / record.folder
    if target.exists():
        raise UserError(f"Two records are of one cell: {stored.path}. Leave one of them out.")
    target.mkdir(parents=True)
    (target / RECORD_FILE).write_text(to_json(record), encoding="utf-8")
    for name in set(record.detections_files):
        shutil.copyfile(stored.path.parent / name, target / name)
    return record


def _submission(
    statement: Statement, check: WeightsCheck, records: Sequence[Record], folder: Path
) -> Submission:
    first = records[0]
    report, _ = check.load(
        statement.backbone, first.cell.detector, first.protocol.id, len(first.dataset.classes)
    )
    inside = folder / RECORDS_FOLDER
    return Submission(
        **statement.model_dump(),
        contamination=contamination(statement.pretrained_on, [r.cell.dataset for r in records]),
        weights=SubmittedWeights(
            sha256=check.local.sha256,
            bytes=check.path.stat().st_size,
            scope=check.scope,
        ),
        load=WeightsReport.of(report),
        files={
            path.relative_to(inside).as_posix(): SubmittedFile(
                sha256=file_sha256(path), bytes=path.stat().st_size
            )
            for path in sorted(inside.rglob("*"))
            if path.is_file()
        },
        created=datetime.now(UTC),
    )
