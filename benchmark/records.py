"""Records: one finished cell each, immutable, complete enough to be checked by anyone.

A record is a folder, `<results>/<protocol>/<dataset>/<cell>-<key12>/`, with `record.json` and the detections
that its metrics were computed from. It appears whole, by one rename, and is never changed afterwards. The
format is described in docs/records.md; other packages read records through this module alone.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from benchmark.detections import Detections
from benchmark.environment import Environment
from benchmark.evaluate import ClassMetrics, Metrics
from benchmark.record_schema import (
    CellIdentity,
    CurvePoint,
    DatasetUsed,
    EpochResult,
    Part,
    Pretraining,
    ProtocolUsed,
    Record,
    StageCost,
    StageUsed,
    Trust,
    WeightsReport,
    to_json,
)
from datasets_builders.errors import UserError

__all__ = [
    "CellIdentity",
    "ClassMetrics",
    "CurvePoint",
    "DatasetUsed",
    "Detections",
    "Environment",
    "EpochResult",
    "Metrics",
    "Pretraining",
    "ProtocolUsed",
    "Quarantined",
    "Record",
    "StageCost",
    "StageUsed",
    "StoredRecord",
    "Trust",
    "WeightsReport",
    "find_record",
    "iter_records",
    "read_record",
    "to_json",
    "write_record",
]

RECORD_FILE = "record.json"
MAX_RECORD_BYTES = 16 * 2**20

AnyRecord = TypeVar("AnyRecord", bound=Part)

_log = logging.getLogger(__name__)


class StoredRecord(NamedTuple):
    """A record and its file."""

    path: Path
    record: Record


class Quarantined(NamedTuple):
    """A file that should be a record and is none."""

    path: Path
    reason: str


def write_record(
    record: Record, detections_last: Detections, detections_best: Detections, results: Path
) -> Path:
    """Stores a record with its detections; it appears whole or not at all, and never replaces another.

    Args:
        record: The finished cell.
        detections_last: What its metrics at `last` were computed from.
        detections_best: What its metrics at `best` were computed from.
        results: The results folder.

    Returns:
        The record's file. Where a record of this key is there already, that one's: it stays as it is, with a
        warning if its numbers differ.

    Raises:
        UserError: The folder cannot be written, or a damaged record stands there.
        ValueError: The detections are not those of the record.
    """
    for result, detections in ((record.last, detections_last), (record.best, detections_best)):
        if result.detections_sha256 != detections.sha256():
            raise ValueError(f"detections of epoch {result.epoch} are not the ones that the record names")

    def fill(folder: Path) -> None:
        # Where both are equal they share one name, and the second writing changes nothing.
        for name, detections in zip(record.detections_files, (detections_last, detections_best), strict=True):
            detections.save(folder / name)

    path = results / record.folder / RECORD_FILE
    return path if store_folder(path, results, record, fill) else _existing(path, record)


def store_folder(path: Path, results: Path, record: Part, fill: Callable[[Path], None]) -> bool:
    """Stores a record's folder; it appears whole or not at all, and never replaces another.

    Args:
        path: The record's file in its folder.
        results: The results folder, for messages.
        record: What the file holds.
        fill: Writes what belongs beside it into a folder.

    Returns:
        Whether it was stored; if not, a folder with content stands there.

    Raises:
        UserError: The folder cannot be written.
    """
    folder = path.parent
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        with (temporary / path.name).open("x", encoding="utf-8") as file:
            file.write(to_json(record))
            file.flush()
            os.fsync(file.fileno())
        try:
            temporary.rename(folder)  # fails where a folder with content stands
        except OSError:
            if not folder.exists():
                raise
            return False
    except OSError as error:
        raise UserError(
            f"Cannot write to {results}: {error.strerror or error}. Choose another folder with --results DIR."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _existing(path: Path, record: Record) -> Path:
    stored = read_record(path)
    if stored.key != record.key:
        raise UserError(
            f"{path} is another experiment whose key begins alike. Choose another folder: --results DIR."
        )
    if (stored.last.metrics, stored.best.metrics) != (record.last.metrics, record.best.metrics):
        _log.warning("%s exists with other numbers and stays as it is.", path)
    return path


def read_record(path: Path) -> Record:
    """Reads a record; anyone may have written it, so nothing in it is trusted.

    Args:
        path: `record.json`, or the folder that holds it.

    Raises:
        UserError: Missing, too large, damaged, of another format, or contradicting itself; names the file.
    """
    return read_model(path / RECORD_FILE if path.is_dir() else path, Record)


def read_model(path: Path, model: type[AnyRecord]) -> AnyRecord:
    """Reads a record of any kind from its file; nothing in it is trusted.

    Args:
        path: The file.
        model: What it must hold.

    Raises:
        UserError: As `read_record`.
    """
    if path.is_symlink() or not path.is_file():
        told = (
            f"A record is a folder with {path.name} in it."
            if path.suffix == ".json"
            else f"It is neither a {RECORD_FILE} nor a folder with one."
        )
        raise UserError(f"No record {path}. {told}")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from None
    if len(content) > MAX_RECORD_BYTES:
        raise UserError(f"{path}: larger than the limit of {MAX_RECORD_BYTES // 2**20} MiB for a record.")
    try:
        outline = json.loads(content, object_pairs_hook=_distinct)
        if isinstance(outline, dict) and outline.get("schema_version") not in (1, None):
            raise UserError(
                f"{path}: written by a newer version of this project. Update it: pip install -U agssp-bench"
            )
        return model.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise UserError(f"{path}: not a valid record: {_reasons(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable record ({ascii(str(error))[1:200]}).") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses an object with two values under one name: readers would disagree on which one holds."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return dict(pairs)


def _reasons(error: ValidationError) -> str:
    """Lists the first complaints; names that a stranger chose are made plain ASCII and cut."""
    shown = []
    for complaint in error.errors(include_url=False, include_context=False, include_input=False)[:3]:
        place = ".".join(ascii(str(part))[1:-1][:40] for part in complaint["loc"])
        shown.append(f"{place}: {complaint['msg']}" if place else complaint["msg"])
    return "; ".join(shown)[:500]


def iter_records(results: Path) -> Iterator[StoredRecord | Quarantined]:
    """Reads every record under a folder, in the order of their paths; one that is damaged stops nothing.

    Args:
        results: The results folder; where it does not exist there are no records.

    Yields:
        A record with its file, or a file that is no valid record and why.
    """
    for path in record_files(results, RECORD_FILE):
        if isinstance(path, Quarantined):
            yield path
            continue
        try:
            yield StoredRecord(path, read_record(path))
        except UserError as error:
            yield Quarantined(path, str(error))


def record_files(results: Path, name: str) -> Iterator[Path | Quarantined]:
    """Finds files of one name under a folder, in the order of their paths.

    Args:
        results: The results folder; where it does not exist there are none.
        name: Such as `record.json`.

    Yields:
        A file, or at the end a folder that cannot be read and why.
    """
    if not results.is_dir():
        return
    unreadable: list[OSError] = []
    for folder, subfolders, files in os.walk(results, onerror=unreadable.append):
        subfolders[:] = sorted(child for child in subfolders if not child.startswith("."))
        if name in files:
            yield Path(folder) / name
    for failure in unreadable:
        yield Quarantined(Path(failure.filename), f"Cannot read {failure.filename}: {failure.strerror}.")


def find_record(results: Path, key: str) -> StoredRecord | None:
    """Looks a record up by its content key.

    Args:
        results: The results folder.
        key: 64 hexadecimal digits.

    Returns:
        The record, or None.

    Raises:
        UserError: Its place is taken by something damaged.
    """
    for path in sorted(results.glob(f"*/*/[!.]*-{key[:12]}/{RECORD_FILE}")):
        record = read_record(path)
        if record.key == key:
            return StoredRecord(path, record)
    return None
