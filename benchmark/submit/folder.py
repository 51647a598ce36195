"""A submission's folder, which anyone may have made: listed within bounds, and nothing outside it is touched."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from baselines.weights.files import LARGEST_FILE
from benchmark.detections import MAX_FILE_BYTES
from benchmark.records import MAX_RECORD_BYTES
from benchmark.submit.schema import ADDRESS_FILE, CARD_FILE, RECORDS_FOLDER, SUBMISSION_FILE, WEIGHTS_FILE
from datasets_builders.errors import UserError

MOST_FILES = 5_000
MOST_BYTES = 4 * 2**30
"""Of all files but the weights."""
_LIMITS = {
    SUBMISSION_FILE: MAX_RECORD_BYTES,
    ADDRESS_FILE: 2**16,
    CARD_FILE: 2**20,
    WEIGHTS_FILE: LARGEST_FILE,
    "record.json": MAX_RECORD_BYTES,
    "last.parquet": MAX_FILE_BYTES,
    "best.parquet": MAX_FILE_BYTES,
}
_TOP = (SUBMISSION_FILE, ADDRESS_FILE, CARD_FILE, WEIGHTS_FILE)
_RECORD_FILES = ("record.json", "last.parquet", "best.parquet")
_PART = re.compile(r"[a-z0-9][a-z0-9_-]{0,200}")
_DEPTH = 5
"""`records/<protocol>/<dataset>/<cell>/<file>`."""


def list_files(folder: Path) -> dict[str, int]:
    """Lists what a submission holds.

    Args:
        folder: The submission's folder.

    Returns:
        Path below the folder (posix) -> bytes, sorted.

    Raises:
        UserError: A link, a special file, a name that no submission has, a file that is too large, or too many: names
            it. Nothing is opened.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(
            f"There is no folder {_shown(folder)}. Make one: python -m benchmark submit prepare WEIGHTS ..."
        )
    found: dict[str, int] = {}
    waiting: list[tuple[str, tuple[str, ...]]] = [(str(folder), ())]
    while waiting:
        place, parts = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    inside = (*parts, entry.name)
                    kind = entry.stat(follow_symlinks=False)
                    _check(inside, kind)
                    if stat.S_ISDIR(kind.st_mode):
                        waiting.append((entry.path, inside))
                    else:
                        found["/".join(inside)] = kind.st_size
                    if len(found) + len(waiting) > MOST_FILES:
                        raise _too_many()
        except OSError as error:
            raise UserError(f"{_shown(place)} cannot be read: {error.strerror}.") from None
    check_amount(found)
    return dict(sorted(found.items()))


def check_amount(files: Mapping[str, int]) -> None:
    """Refuses more files, or larger ones together, than any submission has.

    Args:
        files: Path -> bytes.

    Raises:
        UserError: It is refused.
    """
    if len(files) > MOST_FILES:
        raise _too_many()
    weights = [path for path in files if path.rpartition("/")[2] == WEIGHTS_FILE]
    if len(weights) > 1:
        raise UserError(f"It holds {len(weights)} files {WEIGHTS_FILE}; a submission is of one.")
    size = sum(files.values()) - sum(files[path] for path in weights)
    if size > MOST_BYTES:
        raise UserError(f"Its files claim {size:,} bytes together; at most {MOST_BYTES:,} are allowed.")


def _too_many() -> UserError:
    return UserError(f"It holds more than {MOST_FILES} files and folders.")


def _check(parts: tuple[str, ...], kind: os.stat_result) -> None:
    shown, name = _shown("/".join(parts)), parts[-1]
    if stat.S_ISLNK(kind.st_mode):
        raise UserError(f"{shown} is a link. A submission holds plain files only: put the file itself there.")
    folders = parts if stat.S_ISDIR(kind.st_mode) else parts[:-1]
    if folders and (folders[0] != RECORDS_FOLDER or not all(_PART.fullmatch(part) for part in folders)):
        raise UserError(f"{shown} belongs to no submission: only the folder {RECORDS_FOLDER}/ may be in it.")
    if stat.S_ISDIR(kind.st_mode):
        if len(parts) >= _DEPTH:
            raise UserError(f"{shown[:100]} lies deeper than any record.")
        return
    if not stat.S_ISREG(kind.st_mode):
        raise UserError(f"{shown} is no plain file.")
    known = name in (_TOP if len(parts) == 1 else _RECORD_FILES if len(parts) == _DEPTH else ())
    if not known:
        raise UserError(f"{shown} belongs to no submission: remove it.")
    check_size(name, kind.st_size)


def check_size(name: str, size: int) -> None:
    """Refuses a file by its name alone, or by a size that none of its name has.

    Raises:
        UserError: It is refused.
    """
    if name not in _LIMITS:
        raise UserError(f"{_shown(name)} belongs to no submission: remove it.")
    if size > _LIMITS[name]:
        raise UserError(f"{name} claims {size:,} bytes; at most {_LIMITS[name]:,} are allowed.")


def _shown(path: object) -> str:
    """Returns a path for messages: a stranger's name cannot leave its quotes."""
    return ascii(os.fsencode(str(path)).decode("utf-8", "backslashreplace"))[:200]
