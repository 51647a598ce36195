"""Checks a submission as if its sender were an enemy: everything that can be recomputed is, on this machine."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import datasets_builders
from baselines.weights.sources import LocalWeights
from benchmark import index
from benchmark import protocol as protocols
from benchmark.cells import Cell, cell_identity
from benchmark.modes import PRETRAINED_HERE, Start
from benchmark.records import RECORD_FILE, Record, Trust, WeightsReport, read_record
from benchmark.sources import open_source
from benchmark.submit import card
from benchmark.submit.contamination import contamination
from benchmark.submit.folder import list_files
from benchmark.submit.loading import WeightsCheck, weights_file
from benchmark.submit.schema import (
    CARD_FILE,
    RECORDS_FOLDER,
    SUBMISSION_FILE,
    SUBMISSIONS_FOLDER,
    WEIGHTS_FILE,
    Submission,
    SubmittedFile,
    read_submission,
)
from benchmark.submit.texts import active_texts
from benchmark.verify import Verdict, verify
from datasets_builders import registry
from datasets_builders.errors import UserError
from datasets_builders.storage import file_sha256


@dataclass
class Report:
    """What was found.

    Attributes:
        folder: The submission.
        submission: What its `submission.json` says; None where that cannot be read.
        records: Its valid records.
        complaints: Why it is refused; empty where it is valid. Strangers' words in them are quoted as ASCII.
        notes: What a maintainer should look at, without being wrong.
    """

    folder: Path
    submission: Submission | None = None
    records: list[Record] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.complaints

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "folder": str(self.folder),
            "name": self.submission.name if self.submission else None,
            "valid": self.valid,
            "complaints": self.complaints,
            "notes": self.notes,
            "records": [str(record.folder) for record in self.records],
        }


def validate(folder: Path, board: str | Path | None = None, weights: Path | None = None) -> Report:
    """Checks a submission.

    What is cheap and protects the rest comes first: names and sizes before anything is opened, hashes before anything
    is parsed further, records before weights. Each step ends the check where the next would stand on sand.

    Args:
        folder: The submission's folder.
        board: Records to look for duplicates in: a folder, or `hub://ORG/NAME@REVISION`; None to look nowhere.
        weights: The weights file, where it does not lie in the folder; otherwise it is fetched from the address that
            the folder states.

    Returns:
        What was found. Bad input is a complaint, not an exception.
    """
    report = Report(folder)
    for step in (_outline, _files, _records, _rows, _weights, _numbers, _duplicates):
        try:
            report.complaints += step(report, board, weights)
        except UserError as error:
            report.complaints.append(str(error))
        if report.complaints:
            break
    return report


Board = str | Path | None


def _outline(report: Report, board: Board, weights: Path | None) -> Iterator[str]:
    """Names, sizes, and the statement."""
    present = list_files(report.folder)
    if SUBMISSION_FILE not in present:
        yield f"There is no {SUBMISSION_FILE}. Make the folder with: python -m benchmark submit prepare WEIGHTS ..."
        return
    submission = report.submission = read_submission(report.folder)
    if _in_future(submission.created):
        yield f"{SUBMISSION_FILE} was made in the future: {submission.created:%Y-%m-%d %H:%M} UTC."
    listed = {f"{RECORDS_FOLDER}/{path}" for path in submission.files}
    stored = {path for path in present if path.startswith(f"{RECORDS_FOLDER}/")}
    for path in sorted(listed ^ stored)[:10]:
        known = "is listed and not there" if path in listed else "is there and not listed"
        yield f"{path!a} {known} in {SUBMISSION_FILE}."
    if CARD_FILE not in present and WEIGHTS_FILE in present:
        yield f"There is no {CARD_FILE}."


def _in_future(moment: datetime) -> bool:
    """Whether a time lies ahead by more than clocks differ."""
    return moment > datetime.now(UTC) + timedelta(days=1)


def _files(report: Report, board: Board, weights: Path | None) -> Iterator[str]:
    """Every file of a record is the one that is listed."""
    assert report.submission is not None
    for path, file in report.submission.files.items():
        local = report.folder / RECORDS_FOLDER / path
        if _described(local) != file:
            yield f"{RECORDS_FOLDER}/{path} is not the file that {SUBMISSION_FILE} lists (size or sha256)."


def _described(path: Path) -> SubmittedFile:
    return SubmittedFile(sha256=file_sha256(path), bytes=path.stat().st_size)


def _records(report: Report, board: Board, weights: Path | None) -> Iterator[str]:
    """Each record alone: format, place, protocol, dataset, texts."""
    submission = report.submission
    assert submission is not None
    folders = sorted({Path(path).parent for path in submission.files})
    for place in folders:
        record = read_record(report.folder / RECORDS_FOLDER / place / RECORD_FILE)
        report.records.append(record)
        name = f"{place.as_posix()}:"
        for complaint in _one_record(record, submission):
            yield f"{name} {complaint}"
        if record.folder != place:
            yield f"{name} belongs into {record.folder.as_posix()!a}."
        expected = {RECORD_FILE, *record.detections_files}
        if {Path(path).name for path in submission.files if Path(path).parent == place} != expected:
            yield f"{name} its files are not {', '.join(sorted(expected))}."


def _one_record(record: Record, submission: Submission) -> Iterator[str]:
    cell, used = record.cell, record.protocol
    for text in itertools.islice(active_texts(record.model_dump(mode="json")), 3):
        yield f"{text}."
    if _in_future(record.created):
        yield f"was finished in the future: {record.created:%Y-%m-%d %H:%M} UTC."
    if record.trust is not Trust.SUBMITTED:
        yield f"calls itself {record.trust.value!r}; a submission is 'submitted'."
    if f"{cell.backbone}:{cell.variant}" != submission.backbone:
        yield f"is of {cell.backbone}:{cell.variant}, the submission of {submission.backbone}."
    if cell.mode == "custom" and cell.method != submission.method:
        yield f"its method is {cell.method!r}, the submission's {submission.method!r}."
    if record.weights is None or record.weights.sha256 != submission.weights.sha256:
        yield "was not measured with the submission's weights."
        return
    if used.id not in protocols.names():
        yield f"there is no protocol {used.id!r}."
        return
    protocol = protocols.load(used.id)
    outdated = protocols.invalid_reason(used.name, used.version)
    if outdated:
        yield f"protocol {used.id} counts no more: {outdated}"
    recipe = protocol.recipe(cell.backbone, cell.detector).model_dump(mode="json")
    if used.sha256 != protocol.sha256(cell.detector) or used.settings != recipe:
        yield f"was measured by other settings than those of {used.id}."
        return
    if registry.is_own(cell.dataset):
        yield f"{cell.dataset} is somebody's own images; a submission is of the benchmark's datasets."
        return
    if cell.dataset not in registry.cards():
        yield f"there is no dataset {cell.dataset!r}."
        return
    yield from _dataset_and_inputs(record, protocol)


def _dataset_and_inputs(record: Record, protocol: protocols.Protocol) -> Iterator[str]:
    """The data are the pinned ones, the training had the protocol's length, and the key is of this very cell."""
    cell, data = record.cell, record.dataset
    fingerprint = datasets_builders.fingerprint(cell.dataset)
    if data.fingerprint != fingerprint:
        yield (
            f"was measured on another version of {cell.dataset}: fingerprint {data.fingerprint[:12]}, here"
            f" {fingerprint[:12]}."
        )
        return
    train = datasets_builders.load(cell.dataset, "train")
    sizes = {"train": len(train), "validation": len(datasets_builders.load(cell.dataset, "validation"))}
    if data.splits != sizes or data.classes != registry.card(cell.dataset).classes:
        yield f"its dataset is described otherwise than {cell.dataset} is here."
    if data.procedural != (registry.card(registry.card(cell.dataset).dataset).origin == "procedural"):
        yield "says wrongly whether its images are generated."
    epochs = protocol.recipe(cell.backbone, cell.detector).length(len(train)).epochs
    if record.last.epoch != epochs or (record.curve[-1:] and record.curve[-1].epoch != epochs):
        yield f"ends after epoch {record.last.epoch}; the protocol trains for {epochs}."
    yield from _inputs(record, protocol, fingerprint)


def _inputs(record: Record, protocol: protocols.Protocol, fingerprint: str) -> Iterator[str]:
    from benchmark.finetune import STAGE_VERSION

    assert record.weights is not None
    if record.cell.mode in PRETRAINED_HERE:
        start = Start()
        free = {"upstream", "scope"}  # checked against the record's own stages where it is read
    else:
        weights = LocalWeights(Path(), record.weights.sha256, "", input=record.inputs.get("weights_input"))  # type: ignore[arg-type]
        start, free = Start(record.weights.scope, weights), set()
    expected = cell_identity(
        Cell(**record.cell.model_dump()),
        protocol,
        start,
        dataset_fingerprint=fingerprint,
        stage_version=STAGE_VERSION,
    )
    inputs: dict[str, Any] = record.inputs
    names = (expected.keys() | inputs.keys()) - free
    other = sorted(name for name in names if expected.get(name) != inputs.get(name))
    if other:
        yield f"its inputs are not those of its cell here: {', '.join(ascii(name)[1:-1][:40] for name in other[:5])}."


def _rows(report: Report, board: Board, weights: Path | None) -> Iterator[str]:
    """The seeds of each row: distinct, counted from 0, as many as the protocol asks, with answers of their own."""
    submission = report.submission
    assert submission is not None
    rows: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in report.records:
        rows[record.protocol.id, record.cell.detector, record.cell.dataset].append(record)
    for (protocol, detector, dataset), records in rows.items():
        name = f"{dataset}, {detector}, {protocol}:"
        seeds = sorted(record.cell.seed for record in records)
        least = len(protocols.load(protocol).seeds)
        if len(set(seeds)) < len(seeds):
            yield f"{name} a seed appears twice ({' '.join(map(str, seeds))})."
        elif seeds != list(range(len(seeds))) or len(seeds) < least:
            yield (
                f"{name} seeds must be 0, 1, ... without a gap, at least {least} of them, so that nobody chooses the"
                f" best; they are {' '.join(map(str, seeds))}."
            )
        if len({record.row_key for record in records}) > 1:
            yield f"{name} its records differ in more than the seed."
        answers = [r.last.detections_sha256 for r in records if r.last.metrics.detections]
        if len(set(answers)) < len(answers):
            yield f"{name} different seeds have the same detections: it is one run, several times."
    stated = contamination(submission.pretrained_on, [record.cell.dataset for record in report.records])
    if stated != submission.contamination:
        yield "its statement on training data is not what follows from --pretrained-on."
    if not submission.pretrained_on:
        report.notes.append("It does not say what it was pretrained on.")
    report.notes += [f"{entry.dataset}: {entry.source}: {entry.reason}" for entry in submission.contamination]
    text = report.folder / CARD_FILE
    if text.is_file() and text.read_bytes() != card.render(submission, report.records).encode():
        yield f"{CARD_FILE} is not the card that follows from the submission: write your words into --method-text."


def _weights(report: Report, board: Board, weights: Path | None) -> Iterator[str]:
    """The weights are the stated ones, and load as every record says."""
    submission = report.submission
    assert submission is not None
    check = WeightsCheck(weights_file(report.folder, weights))
    if (
        check.path.stat().st_size != submission.weights.bytes
        or check.local.sha256 != submission.weights.sha256
    ):
        yield f"{WEIGHTS_FILE} is not the file that {SUBMISSION_FILE} names (size or sha256)."
        return
    if check.scope != submission.weights.scope:
        yield f"{WEIGHTS_FILE} says of itself {check.scope}, the submission {submission.weights.scope}."
        return
    loaded: dict[tuple[str, str, int], tuple[Any, int]] = {}
    for position, record in enumerate(report.records):
        place = (record.cell.detector, record.protocol.id, len(record.dataset.classes))
        if place not in loaded:
            loaded[place] = check.load(submission.backbone, *place)
        found, parameters = WeightsReport.of(loaded[place][0]), loaded[place][1]
        if position == 0 and _outcome(submission.load) != _outcome(found):
            yield "its load report is not what loading the weights gives."
        if record.weights is None or _outcome(record.weights) != _outcome(found):
            yield f"{record.folder.as_posix()}: its weights report is not what loading the weights gives."
        if record.parameters != parameters:
            yield f"{record.folder.as_posix()}: says {record.parameters:,} parameters; the detector has {parameters:,}."


def _outcome(report: Any) -> dict[str, Any]:
    values: dict[str, Any] = report.model_dump(exclude={"source"})
    return values


def _numbers(report: Report, board: Board, weights: Path | None) -> Iterator[str]:
    """Every metric again from the detections and the dataset's own labels."""
    for record in report.records:
        found = verify(report.folder / RECORDS_FOLDER / record.folder)
        if found.verdict is not Verdict.EQUAL:
            reasons = "; ".join(found.reasons[:3])
            yield f"{record.folder.as_posix()}: its numbers are not those of its detections: {reasons}"


def _duplicates(report: Report, board: Board, weights: Path | None) -> Iterator[str]:
    """Nothing of it is on the board under another name."""
    submission = report.submission
    assert submission is not None
    if board is None:
        report.notes.append("Duplicates were not looked for: name a board with --board.")
        return
    root = open_source(board).root
    listing, _ = index.scan(root)
    sent = index.refresh(root, index.SUBMISSIONS, listing)
    sent = sent[sent["reason"].isna()]
    for name, slug, sha256 in sent[["name", "slug", "weights_sha256"]].to_numpy():
        if sha256 == submission.weights.sha256 and slug != submission.slug:
            yield f"the same weights are on the board as {name!a}."
        if slug == submission.slug and sha256 != submission.weights.sha256:
            yield f"the board has another submission named {name!a}: choose another name."
    known = index.refresh(root, index.RECORDS, listing)
    known = known[known["reason"].isna()]
    own = f"{SUBMISSIONS_FOLDER}/{submission.slug}/"
    elsewhere = known[~known["path"].str.startswith(own)].set_index("detections_sha256")["path"]
    for record in report.records:
        if record.last.metrics.detections and record.last.detections_sha256 in elsewhere.index:
            place = elsewhere[[record.last.detections_sha256]].iloc[0]
            yield f"{record.folder.as_posix()}: the board has the same detections in {place!a}."
