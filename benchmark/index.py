"""An index of a results folder: what tables need of every record, in one Parquet file of the cache.

Records never change, so a file whose size and time are those of the index is not read again.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from benchmark import anomaly_records, attestations, evaluate, record_schema, records
from benchmark.anomaly_records import RECORD_FILE as ANOMALY_FILE
from benchmark.anomaly_records import read_record as read_anomaly_record
from benchmark.attestations import ATTESTATION_FILE, read_attestation
from benchmark.records import RECORD_FILE, read_record
from benchmark.submit import schema, texts
from benchmark.submit.schema import SUBMISSION_FILE, read_submission
from datasets_builders import storage
from datasets_builders.errors import UserError
from datasets_builders.machine import cores
from datasets_builders.storage import atomic_file, content_key, file_sha256

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)

_IN_PROCESSES_FROM = 1000
"""Files to read from which on starting processes pays."""


def _record_row(path: Path) -> dict[str, Any]:
    record = read_record(path)
    cell, last, pretraining = record.cell, record.last.metrics, record.pretraining
    return {
        "key": record.key,
        "row_key": record.row_key,
        "trust": record.trust.value,
        "protocol": record.protocol.id,
        "protocol_name": record.protocol.name,
        "protocol_version": record.protocol.version,
        "track": "procedural" if record.dataset.procedural else "real",
        "detector": cell.detector,
        "backbone": cell.backbone,
        "variant": cell.variant,
        "method": cell.method,
        "mode": cell.mode,
        "maps": pretraining.maps if pretraining else None,
        "corpus": pretraining.corpus if pretraining else None,
        "dataset": cell.dataset,
        "fingerprint": record.dataset.fingerprint,
        "train_images": record.dataset.splits.get("train"),
        "seed": cell.seed,
        "map50": last.map50,
        "map50_95": last.map50_95,
        "best_map50": record.best.metrics.map50,
        "best_epoch": record.best.epoch,
        "epochs": record.last.epoch,
        "parameters_m": record.parameters / 1e6,
        "seconds": record.cost["finetune"].seconds if "finetune" in record.cost else None,
        "weights_sha256": record.weights.sha256 if record.weights else None,
        "detections_sha256": record.last.detections_sha256,
        "expected_path": record.folder.as_posix(),
        "created": record.created.isoformat(),
    }


def _submission_row(path: Path) -> dict[str, Any]:
    found = read_submission(path)
    return {
        "name": found.name,
        "slug": found.slug,
        "backbone": found.backbone,
        "method": found.method,
        "method_text": found.method_text,
        "licence": found.licence,
        "pretrained_on": "; ".join(found.pretrained_on),
        "contamination": "; ".join(f"{entry.dataset}: {entry.reason}" for entry in found.contamination),
        "weights_sha256": found.weights.sha256,
        "created": found.created.isoformat(),
    }


def _anomaly_row(path: Path) -> dict[str, Any]:
    record = read_anomaly_record(path)
    cell, metrics = record.cell, record.metrics
    return {
        "trust": record.trust.value,
        "detector": cell.detector,
        "encoder": cell.encoder,
        "switches": ", ".join(f"{name}={cell.settings[name]}" for name in sorted(cell.settings)),
        "shots": str(cell.shots),
        "dataset": cell.dataset,
        "fingerprint": record.dataset.fingerprint,
        "seed": cell.seed,
        "image_auroc": metrics.image.auroc if metrics.image else None,
        "pixel_auroc": metrics.pixel.auroc if metrics.pixel else None,
        "pixel_aupro": metrics.pixel.aupro if metrics.pixel else None,
        "mask_iou": metrics.mask_iou.adaptive.iou if metrics.mask_iou else None,
        "images_per_second": record.images_per_second,
    }


def _attestation_row(path: Path) -> dict[str, Any]:
    found = read_attestation(path)
    return {
        "row_key": found.row_key,
        "finding": found.finding.value,
        "claimed": sorted(entry.detections_sha256 for entry in found.claimed),
        "created": found.created.isoformat(),
    }


@dataclass(frozen=True)
class Kind:
    """A kind of file that is indexed.

    Attributes:
        file: Its name.
        columns: What the index keeps of it -> its type (of pandas).
        row: Reads one.
    """

    file: str
    columns: Mapping[str, str]
    row: Callable[[Path], dict[str, Any]]


_TEXT, _NUMBER, _COUNT = "object", "float64", "Int64"
RECORDS = Kind(
    RECORD_FILE,
    {
        **dict.fromkeys(("key", "row_key", "trust", "protocol", "protocol_name"), _TEXT),
        "protocol_version": _COUNT,
        **dict.fromkeys(("track", "detector", "backbone", "variant", "method", "mode"), _TEXT),
        **dict.fromkeys(("maps", "corpus", "dataset", "fingerprint"), _TEXT),
        **dict.fromkeys(("train_images", "seed"), _COUNT),
        **dict.fromkeys(("map50", "map50_95", "best_map50"), _NUMBER),
        **dict.fromkeys(("best_epoch", "epochs"), _COUNT),
        **dict.fromkeys(("parameters_m", "seconds"), _NUMBER),
        **dict.fromkeys(("weights_sha256", "detections_sha256", "expected_path", "created"), _TEXT),
    },
    _record_row,
)
SUBMISSIONS = Kind(
    SUBMISSION_FILE,
    dict.fromkeys(
        (
            *("name", "slug", "backbone", "method", "method_text", "licence", "pretrained_on"),
            *("contamination", "weights_sha256", "created"),
        ),
        _TEXT,
    ),
    _submission_row,
)
ATTESTATIONS = Kind(
    ATTESTATION_FILE, dict.fromkeys(("row_key", "finding", "claimed", "created"), _TEXT), _attestation_row
)
ANOMALY = Kind(
    ANOMALY_FILE,
    {
        **dict.fromkeys(
            ("trust", "detector", "encoder", "switches", "shots", "dataset", "fingerprint"), _TEXT
        ),
        "seed": _COUNT,
        **dict.fromkeys(
            ("image_auroc", "pixel_auroc", "pixel_aupro", "mask_iou", "images_per_second"), _NUMBER
        ),
    },
    _anomaly_row,
)
KINDS = (RECORDS, SUBMISSIONS, ATTESTATIONS, ANOMALY)

_IDENTITY = ["path", "size", "mtime_ns"]
_OWN = {"path": _TEXT, "size": "int64", "mtime_ns": "int64", "reason": _TEXT}


Listing = dict[str, list[tuple[str, int, int]]]
"""Files by their name: path below the root, size, time of the last change in nanoseconds."""


def scan(root: Path) -> tuple[Listing, list[tuple[str, str]]]:
    """Lists a results folder in one go, hidden folders and links to folders left out.

    Args:
        root: The folder; where it does not exist, nothing is in it.

    Returns:
        The files of every kind, and folders that cannot be listed with the reason.
    """
    found: Listing = {kind.file: [] for kind in KINDS}
    unreadable: list[tuple[str, str]] = []
    waiting = [(str(root), "")] if root.is_dir() else []
    while waiting:
        folder, place = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name in found:
                        state = entry.stat(follow_symlinks=False)
                        found[entry.name].append(
                            (_text(place + entry.name), state.st_size, state.st_mtime_ns)
                        )
                    elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, f"{place}{entry.name}/"))
        except OSError as error:
            unreadable.append((_text(place), f"Cannot read {_text(folder)}: {error.strerror}."))
    return found, unreadable


def _text(path: str) -> str:
    """Returns a path as text that can be stored: broken Unicode is shown by its bytes."""
    return path.encode("utf-8", "backslashreplace").decode()


def refresh(root: Path, kind: Kind, listing: Listing | None = None) -> pd.DataFrame:
    """Brings the index of a folder up to date and returns it.

    Args:
        root: The results folder; where it does not exist, the index is empty.
        kind: What to index.
        listing: Of `scan`, where it was made for other kinds already.

    Returns:
        One row a file, in the order of their paths: `path` (posix, below the root), `size`, `mtime_ns`, `reason` (why
        it is no valid file of its kind, else None) and the kind's columns, empty where there is a reason.
    """
    import pandas as pd

    files = (scan(root)[0] if listing is None else listing)[kind.file]
    found = pd.DataFrame(sorted(files), columns=_IDENTITY).astype({name: _OWN[name] for name in _IDENTITY})
    store = _index_file(root, kind)
    known = _stored(store, kind)
    table = known
    if not known[_IDENTITY].equals(found):
        merged = found.merge(known, on=_IDENTITY, how="left", indicator="indexed", sort=False)
        new = merged["indexed"] == "left_only"
        read = _read_all(root, merged.loc[new, "path"], kind)
        added = found.merge(
            pd.DataFrame(read, columns=["path", "reason", *kind.columns]), on="path", sort=False
        )
        table = pd.concat([_typed(merged[~new], kind), _typed(added, kind)], ignore_index=True)
        table = table.sort_values("path", ignore_index=True)
        _write(store, table)
    return table


def _index_file(root: Path, kind: Kind) -> Path:
    """An index made by other code is not used: what is valid may have changed."""
    modules = (record_schema, records, evaluate, schema, texts, attestations, anomaly_records)
    code = [file_sha256(Path(str(module.__file__))) for module in modules] + [file_sha256(Path(__file__))]
    key = content_key([str(root.resolve()), kind.file, code])
    return storage.home() / "index" / f"{key}.parquet"


def _typed(table: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    import pandas as pd

    types = _OWN | dict(kind.columns)
    table = table.reindex(columns=list(types)).astype(types)
    texts = [name for name, of in types.items() if of == _TEXT]
    table[texts] = table[texts].astype("object").where(table[texts].notna(), None)
    assert isinstance(table, pd.DataFrame)
    return table


def _stored(store: Path, kind: Kind) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame()
    if store.is_file():
        try:
            table = pd.read_parquet(store)
        except (OSError, ValueError) as error:  # only a cache: made anew
            _log.warning("%s is damaged and is made anew: %s", store, error)
    return _typed(table, kind)


def _write(store: Path, table: pd.DataFrame) -> None:
    try:
        with atomic_file(store) as temporary:
            table.to_parquet(temporary, index=False)
    except OSError as error:  # slower next time, not wrong
        _log.warning("the index %s cannot be written: %s", store, error.strerror or error)


def _read_all(root: Path, paths: Iterable[str], kind: Kind) -> list[dict[str, Any]]:
    """Reads files: many of them in processes of their own, one a core."""
    wanted = list(paths)
    workers = cores() if len(wanted) >= _IN_PROCESSES_FROM else 1
    shares = [wanted[start::workers] for start in range(workers)]
    # Neither by fork, since a server that shows the board has threads, nor by multiprocessing, which imports anew
    # whatever program asked.
    others = [_start_reader(root, share, kind) for share in shares[1:]]
    rows = [_read(root, path, kind) for path in shares[0]]
    for share, (process, answer) in zip(shares[1:], others, strict=True):
        with process, answer:
            process.wait()
            answer.seek(0)
            done = process.returncode == 0
            rows += json.load(answer) if done else [_read(root, path, kind) for path in share]
    return rows


def _start_reader(root: Path, paths: list[str], kind: Kind) -> tuple[subprocess.Popen[str], IO[str]]:
    answer = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed by `_read_all`)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    question = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    json.dump([str(root.resolve()), kind.file, paths], question)
    question.seek(0)
    with question:
        words = [sys.executable, "-m", __spec__.name]
        process = subprocess.Popen(words, stdin=question, stdout=answer, text=True, env=environment)  # noqa: S603
    return process, answer


def _read(root: Path, path: str, kind: Kind) -> dict[str, Any]:
    try:
        return {"path": path, "reason": None, **kind.row(root / path)}
    except UserError as error:
        return {"path": path, "reason": str(error).encode("utf-8", "backslashreplace").decode()}


def _answer() -> None:
    """Reads what standard input asks for and prints it as JSON."""
    root, name, paths = json.load(sys.stdin)
    kind = next(kind for kind in KINDS if kind.file == name)
    json.dump([_read(Path(root), path, kind) for path in paths], sys.stdout)


if __name__ == "__main__":
    _answer()
