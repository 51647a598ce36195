"""Checks a submission that a visitor uploads: in a folder that vanishes, in a process of its own, one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmark.submit.folder import MOST_FILES
from benchmark.submit.schema import SUBMISSION_FILE
from datasets_builders import storage
from datasets_builders.archives import unpacked
from datasets_builders.errors import UserError

SECONDS = 900
"""How long a check may take."""
MOST_BYTES = 2**30
"""What a zip may unfold to. Weights and detections hardly shrink in it, and the form takes 64 MB."""


def check_upload(archive: bytes, board: str) -> dict[str, Any]:
    """Runs `submit validate` on an uploaded zip; nothing of it is kept.

    Args:
        archive: A zip of the submission's folder, or of what is in it.
        board: Records to look for duplicates in.

    Returns:
        What `submit validate --json` says: `valid`, `name`, `complaints`, `notes`, `records`.

    Raises:
        UserError: It is no submission in a zip, another one is being checked, or the check takes too long.
    """
    lock = storage.home() / "leaderboard" / "upload.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            FileLock(lock, timeout=0),
            tempfile.TemporaryDirectory() as scratch,
            _unpacked(archive, Path(scratch)) as folder,
        ):
            return _validated(_submission(folder), board, scratch)
    except Timeout as error:
        raise UserError("Another submission is being checked. Try again in some minutes.") from error


@contextmanager
def _unpacked(archive: bytes, scratch: Path) -> Iterator[Path]:
    """Unpacks a zip; what is wrong with it is said without the server's paths."""
    file = scratch / "submission.zip"
    file.write_bytes(archive)
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as opened:  # `unpacked` says what a bad one is
        members = opened.infolist()
        size = sum(member.file_size for member in members)  # more than it claims is never read of a member
        if size > MOST_BYTES or len(members) > MOST_FILES:
            raise UserError(
                f"The zip unfolds to {size:,} bytes in {len(members):,} files; this form takes {MOST_BYTES:,} in "
                f"{MOST_FILES:,}. Check it on your own machine: python -m benchmark submit validate FOLDER"
            )
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(unpacked(file, scratch))
        except UserError as error:
            reason = str(error).partition("\n")[0].replace(f"{scratch}/", "")
            raise UserError(f"{reason} Make the zip again from the submission's folder.") from error
        yield folder


def _submission(folder: Path) -> Path:
    inside = sorted(folder.iterdir())
    if len(inside) == 1 and inside[0].is_dir():
        folder = inside[0]
    if not (folder / SUBMISSION_FILE).is_file():
        raise UserError(
            f"The zip holds no {SUBMISSION_FILE}. Make the folder with: python -m benchmark submit prepare --help"
        )
    return folder


def _validated(folder: Path, board: str, scratch: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmark",
        "submit",
        "validate",
        str(folder),
        "--json",
        f"--board={board}",
    ]
    try:
        done = subprocess.run(  # noqa: S603 (no shell; of the visitor's words, none is in the command)
            command, capture_output=True, text=True, timeout=SECONDS, check=False, errors="backslashreplace"
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"The check takes more than {SECONDS // 60} minutes. Run it yourself: python -m benchmark submit "
            "validate FOLDER"
        ) from error
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"The check ended without an answer: {_without_paths(lines[-1], folder, scratch)}"
        ) from error
    found["complaints"] = [_without_paths(text, folder, scratch) for text in found["complaints"]]
    return found


def _without_paths(text: str, folder: Path, scratch: str) -> str:
    """Returns what the check says without the places of the server."""
    return text.replace(f"{folder}/", "").replace(scratch, "")
