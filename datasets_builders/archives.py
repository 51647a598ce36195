"""Raw data that comes as one archive: unpacked into a scratch folder, or refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from datasets_builders.errors import UserError

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 500_000
MAX_BYTES = 100 * 2**30
# Pictures hardly shrink in an archive; flat masks do. Beyond this much data, a ratio of unpacked to packed
# size over the limit is no dataset.
FREE_BYTES = 2**30
MAX_RATIO = 200
_CHUNK = 2**20
_DECOMPRESS = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_UTF8_NAME = 0x800
_UNIX_TYPE_MASK, _UNIX_LINK, _UNIX_FILE, _UNIX_FOLDER = 0o170000, 0o120000, 0o100000, 0o040000


class _HostileError(Exception):
    """A member that no honest archive has; the message names it."""


def is_archive(path: Path) -> bool:
    """Tells from its name whether a file is an archive that can be unpacked here."""
    return path.name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES)


@contextlib.contextmanager
def unpacked(archive: Path, scratch: Path) -> Iterator[Path]:
    """Unpacks an archive into a new folder below `scratch`, which is removed afterwards.

    Nothing is ever written outside that folder: an archive with absolute names, names that climb out, links,
    devices, names that appear twice or are not text, or with far more data than its size allows is refused as
    a whole.

    Args:
        archive: A zip or tar file (`ZIP_SUFFIXES`, `TAR_SUFFIXES`).
        scratch: Existing folder on a file system with room for the contents.

    Yields:
        The folder with the contents.

    Raises:
        UserError: The archive is hostile, damaged, encrypted, or there is no room for it.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="unpacked-") as name:
        folder = Path(name)
        try:
            if archive.name.lower().endswith(ZIP_SUFFIXES):
                _unpack_zip(archive, folder)
            else:
                _unpack_tar(archive, folder)
        except _HostileError as error:
            raise UserError(
                f"{archive}: refused, nothing was unpacked: {error}.\n"
                "  Get it again from its owner, or unpack it yourself and give the folder as --raw."
            ) from error
        except (
            zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError,
            NotImplementedError, RuntimeError, ValueError, OSError,
        ) as error:  # fmt: skip
            # zipfile tells encryption by RuntimeError, unknown compression by NotImplementedError.
            raise UserError(
                f"{archive}: cannot be unpacked ({error}). Get it again from its owner."
            ) from error
        yield folder


class _Budget:
    """Counts members and unpacked bytes, and says when they are more than the archive can honestly hold."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.folder = folder
        self.limit = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * archive.stat().st_size))
        self.bytes = 0
        self.seen: set[PurePosixPath] = set()

    def target(self, name: str) -> Path:
        """Returns where a member goes; refuses names that lead elsewhere or come twice."""
        path = PurePosixPath(name)
        if (
            not path.parts
            or path.is_absolute()
            or ".." in path.parts
            or "\\" in name
            or "\0" in name
            or ":" in path.parts[0]
        ):
            raise _HostileError(f"the name {name!r} leads out of the folder")
        if not name.isprintable():
            raise _HostileError(f"the name {name!r} is not text")
        if path in self.seen:
            raise _HostileError(f"the name {name!r} is there twice")
        self.seen.add(path)
        if len(self.seen) > MAX_MEMBERS:
            raise _HostileError(f"more than {MAX_MEMBERS} files")
        return self.folder / path

    def copy(self, source: IO[bytes], target: Path, name: str) -> None:
        """Writes one file, counting what really comes out rather than what the archive says."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            while chunk := source.read(_CHUNK):
                self.bytes += len(chunk)
                if self.bytes > self.limit:
                    raise _HostileError(
                        f"over {self.limit} bytes unpacked at {name!r}, which looks like a bomb"
                    )
                file.write(chunk)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"it needs {needed} bytes of disk, {free} are free")


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Returns a member's name: as marked, else UTF-8 or GB 18030 if it is that, else code page 437.

    Many tools write names in their own encoding without saying so; `zipfile` takes them as code page 437.
    """
    if member.flag_bits & _UTF8_NAME:
        return member.filename
    try:
        raw = member.filename.encode("cp437")
    except UnicodeEncodeError:
        return member.filename
    for encoding in ("utf-8", "gb18030"):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    return member.filename


def _unpack_zip(archive: Path, folder: Path) -> None:
    budget = _Budget(archive, folder)
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        declared = sum(member.file_size for member in members)
        if declared > budget.limit:
            raise _HostileError(f"it says to hold {declared} bytes, which looks like a bomb")
        _check_room(folder, declared)
        # All names are judged before the first byte is written.
        targets = []
        for member in members:
            kind = (member.external_attr >> 16) & _UNIX_TYPE_MASK
            if kind not in (0, _UNIX_FILE, _UNIX_FOLDER):
                what = "a link" if kind == _UNIX_LINK else "no plain file"
                raise _HostileError(f"{member.filename!r} is {what}")
            targets.append(budget.target(_zip_name(member)))
        for member, target in zip(members, targets, strict=True):
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            with file.open(member) as source:
                budget.copy(source, target, member.filename)


class _SmallReads:
    """A stream that refuses to read a lot at once, as tarfile would for a header that says it is huge."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 16 * _CHUNK:
            raise _HostileError("a header claims an absurd size")
        return self._stream.read(size)


def _unpack_tar(archive: Path, folder: Path) -> None:
    budget = _Budget(archive, folder)
    decompress: Any = _DECOMPRESS.get(archive.suffix.lower(), open)
    with contextlib.ExitStack() as stack:
        reader: Any = _SmallReads(stack.enter_context(decompress(archive, "rb")))
        file = stack.enter_context(tarfile.open(fileobj=reader, mode="r:"))
        for member in file:
            if member.isdir() and PurePosixPath(member.name) == PurePosixPath("."):
                continue
            target = budget.target(member.name)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            if not member.isreg() or member.issparse():
                what = "a link" if member.issym() or member.islnk() else "no plain file"
                raise _HostileError(f"{member.name!r} is {what}")
            _check_room(folder, member.size)
            source = file.extractfile(member)
            assert source is not None, "regular members have content"
            with source:
                budget.copy(source, target, member.name)
