r"""Walking a raw folder in one order on every machine, without leaving it.

The rules. Order: by name, accents composed (NFC), a folder where its name falls. Hidden files and
`__MACOSX` are passed over. Links to folders are not followed; a link to a file is, if it stays inside.
A name that is not UTF-8 is kept, each wrong byte written as `\xNN`. Whatever could be an image and is not
taken is said, with the reason.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
ROOT_DEPTH = 3
TRANSPARENT_FOLDERS = frozenset(
    {
        "images",
        "image",
        "imgs",
        "img",
        "jpegimages",
        "labels",
        "label",
        "annotations",
        "annotation",
        "xml",
        "xmls",
    }
)
"""Folders that only tell images from their labels."""
SPLIT_FOLDERS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
TEST_FOLDER = "test"
PLAIN_FOLDERS = TRANSPARENT_FOLDERS | SPLIT_FOLDERS.keys() | {TEST_FOLDER}
"""Folders whose names say nothing of what their images show."""
LINKED_FOLDER = "a link to a folder; links to folders are not followed"
_PASSED_OVER = frozenset({"__MACOSX"})


@dataclass(frozen=True)
class ImageFile:
    """A file to be read: its path, its name inside the source, size in bytes and time of change (ns)."""

    path: Path
    name: str
    size: int
    changed: int


@dataclass(frozen=True)
class Skipped:
    """Something that is not taken: its name inside the source, and why."""

    name: str
    reason: str


def shown(name: str) -> str:
    r"""Returns a file name as text that can be stored: NFC, bytes that are not UTF-8 as `\xNN`."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def key(name: str) -> str:
    """Returns a folder name as it is compared: shown, without regard to case."""
    return shown(name).casefold()


def is_image_name(name: str) -> bool:
    """Tells by its suffix whether a file is meant to be an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def listing(folder: Path) -> list[os.DirEntry[str]]:
    """Returns a folder's visible entries in the order of their names."""
    with os.scandir(folder) as found:
        entries = [e for e in found if not e.name.startswith(".") and e.name not in _PASSED_OVER]
    return sorted(entries, key=lambda entry: (shown(entry.name), os.fsencode(entry.name)))


def subfolder(folder: Path, path: str) -> Path | None:
    """Returns the folder at a relative path below `folder`, in any case; None where there is none."""
    for part in path.split("/"):
        wanted = key(part)
        try:
            entries = listing(folder)
        except OSError:
            return None
        match = next((e for e in entries if key(e.name) == wanted and e.is_dir(follow_symlinks=False)), None)
        if match is None:
            return None
        folder = Path(match.path)
    return folder


def find_root(folder: Path, fits: Callable[[Path], bool]) -> Path | None:
    """Returns the first folder that fits a layout: `folder` itself, or one of the up to 3 levels below it.

    Archives often wrap everything in a folder or two of their own.
    """
    level = [folder]
    for _ in range(ROOT_DEPTH + 1):
        for candidate in level:
            if fits(candidate):
                return candidate
        level = [Path(e.path) for parent in level for e in listing(parent) if e.is_dir(follow_symlinks=False)]
    return None


def unwrapped(folder: Path) -> Path:
    """Returns the folder inside up to 3 wrappers: folders that hold one folder, and no image, themselves."""
    for _ in range(ROOT_DEPTH):
        entries = listing(folder)
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        if len(folders) != 1 or any(is_image_name(entry.name) for entry in entries if not entry.is_dir()):
            break
        folder = Path(folders[0].path)
    return folder


def images_below(
    folder: Path, root: Path, skip: Collection[str] = (), prefix: str | None = None
) -> Iterator[ImageFile | Skipped]:
    """Yields every image below a folder.

    Args:
        folder: Where to look; `root` or a folder below it.
        root: The source's folder: names are relative to it, and links must stay inside it.
        skip: Keys (see `key`) of folders to pass over, at any depth.
        prefix: Name of `folder` inside `root`; worked out where None.
    """
    if prefix is None:
        prefix = "".join(f"{shown(part)}/" for part in folder.relative_to(root).parts)
    try:
        entries = listing(folder)
    except OSError as error:
        yield Skipped(prefix or ".", f"cannot be listed: {error.strerror}")
        return
    names: set[str] = set()
    for entry in entries:
        name = f"{prefix}{shown(entry.name)}"
        if entry.is_dir(follow_symlinks=False):
            if key(entry.name) not in skip:
                yield from images_below(Path(entry.path), root, skip, f"{name}/")
        elif entry.is_symlink() and entry.is_dir():
            yield Skipped(name, LINKED_FOLDER)
        elif is_image_name(entry.name):
            if name in names:
                yield Skipped(name, "another file of the same name (accents composed) was taken")
                continue
            names.add(name)
            yield image_file(entry, name, root)


def image_file(entry: os.DirEntry[str], name: str, root: Path) -> ImageFile | Skipped:
    """Looks at one file that is meant to be an image."""
    path = Path(entry.path)
    try:
        if entry.is_symlink() and not path.resolve(strict=True).is_relative_to(root.resolve()):
            return Skipped(name, "a link that leaves the source's folder")
        if not entry.is_file():
            return Skipped(name, "not a regular file")
        status = entry.stat()
    except OSError as error:
        return Skipped(name, f"cannot be read: {error.strerror}")
    return ImageFile(path, name, status.st_size, status.st_mtime_ns)
