"""Unpacking a source's archive into a folder of ours, and into nothing else.

Refused, with the member named: absolute names, `..`, links, devices, encrypted members, two members of one
name, and whatever would unpack to more than the stated limits. Only images and annotation files are
written. Names without an encoding mark (zip files of many tools) are read as UTF-8, else as GB 18030, else as
code page 437.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from datasets_builders.corpus.files import is_image_name
from datasets_builders.corpus.readers import ANNOTATION_SUFFIXES
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_folder

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_MEMBERS = 2_000_000
MAX_RATIO = 100
ALLOWANCE = 256 * 2**20
"""Bytes that an archive may unpack to whatever its own size; above that, `MAX_RATIO` times its size."""
_CHUNK = 1 << 20
_UTF8_FLAG, _ENCRYPTED_FLAG = 0x800, 0x1

logger = logging.getLogger(__name__)


@dataclass
class _Budget:
    """What may still be written."""

    archive: Path
    bytes_left: int
    members_left: int = MAX_MEMBERS

    def member(self) -> None:
        self.members_left -= 1
        if self.members_left < 0:
            raise _refused(self.archive, f"it has more than {MAX_MEMBERS} members")

    def spend(self, count: int) -> None:
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise _refused(
                self.archive,
                f"it unpacks to more than {MAX_RATIO} times its size, or than there is room on the disk",
            )


def archive_stem(path: Path) -> str | None:
    """Returns the name without the suffix of a kind of archive that can be read; None for other files."""
    name = path.name.lower()
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), None)
    return path.name[: -len(suffix)] if suffix else None


def unpack(archive: Path, target: Path) -> None:
    """Unpacks an archive's images and annotations into `target`, which appears whole or not at all.

    Every file gets the archive's time of change, so that a second unpacking gives equal files.

    Raises:
        UserError: The archive is refused (see above), or damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    status = archive.stat()
    room = shutil.disk_usage(target.parent).free
    budget = _Budget(archive, min(ALLOWANCE + MAX_RATIO * status.st_size, room))
    members = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    try:
        with atomic_folder(target) as folder:
            for name, open_member in members(archive, budget):
                path = folder.joinpath(*_safe_parts(archive, name))
                path.parent.mkdir(parents=True, exist_ok=True)
                with open_member() as source, _new_file(archive, path, name) as file:
                    while chunk := source.read(_CHUNK):
                        budget.spend(len(chunk))
                        file.write(chunk)
                os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as error:
        raise _refused(archive, f"it is damaged or of an unknown kind ({error})") from error
    except (OSError, ValueError) as error:
        # lzma and bz2 report damage, and the system names it cannot store, through these.
        raise _refused(archive, f"it cannot be unpacked ({error})") from error


def _refused(archive: Path, reason: str) -> UserError:
    return UserError(
        f"{archive} was not unpacked: {reason}.\n"
        f"  Get it again from its owner, or unpack it yourself beside it and move the archive away."
    )


def _safe_parts(archive: Path, name: str) -> list[str]:
    """Splits a member's name into parts that stay below the target.

    Raises:
        UserError: The name is absolute, or leads upwards.
    """
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or "\0" in plain or ".." in parts or re.match("[A-Za-z]:", plain):
        raise _refused(archive, f"the member {name!r} would leave the folder")
    return parts


@contextmanager
def _new_file(archive: Path, path: Path, name: str) -> Iterator[IO[bytes]]:
    try:
        file = path.open("xb")
    except FileExistsError as error:
        raise _refused(archive, f"two members are named {name!r}") from error
    with file:
        yield file


def _wanted(archive: Path, name: str) -> bool:
    suffix = Path(name).suffix.lower()
    if archive_stem(Path(name)) is not None or suffix in (".rar", ".7z"):
        logger.warning("%s holds another archive, %s, which is not unpacked", archive, name)
    return is_image_name(name) or suffix in ANNOTATION_SUFFIXES


def _zip_members(archive: Path, budget: _Budget) -> Iterator[tuple[str, _Opener]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            budget.member()
            name = _zip_name(info)
            _safe_parts(archive, name)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, f"the member {name!r} is a link or a device")
            if info.flag_bits & _ENCRYPTED_FLAG:
                raise _refused(archive, f"the member {name!r} is encrypted")
            if not info.is_dir() and _wanted(archive, name):
                yield name, _Opener(file, info)


def _zip_name(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _UTF8_FLAG:
        return info.filename
    raw = info.filename.encode("cp437")
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return info.filename


def _tar_members(archive: Path, budget: _Budget) -> Iterator[tuple[str, _Opener]]:
    with tarfile.open(archive, "r|*") as file:
        for info in file:
            budget.member()
            _safe_parts(archive, info.name)
            if not (info.isreg() or info.isdir()):
                raise _refused(archive, f"the member {info.name!r} is a link or a device")
            if info.isreg() and _wanted(archive, info.name):
                yield info.name, _Opener(file, info)


@dataclass(frozen=True)
class _Opener:
    """Opens one member of an archive for reading."""

    file: zipfile.ZipFile | tarfile.TarFile
    member: zipfile.ZipInfo | tarfile.TarInfo

    def __call__(self) -> IO[bytes]:
        if isinstance(self.file, zipfile.ZipFile):
            assert isinstance(self.member, zipfile.ZipInfo)
            return self.file.open(self.member)
        assert isinstance(self.member, tarfile.TarInfo)
        opened = self.file.extractfile(self.member)
        assert opened is not None, "only regular files are opened"
        return opened
