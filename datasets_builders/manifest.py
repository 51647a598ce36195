"""The manifest of a prepared dataset: what the folder must hold, and whether it still does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets_builders.storage import atomic_file, content_key, file_sha256

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Subset:
    """A derived config: its training images, counts and fingerprint; its validation split is whole."""

    train: list[str]
    boxes: int
    per_class: dict[str, int]
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """What was built.

    Attributes:
        name: Name of the dataset.
        identity: `identity` of the card and builder that made it; another one means that it is out of date.
        splits: Number of images in each split.
        boxes: Number of boxes.
        per_class: Number of boxes of each class.
        masks: Number of images with a mask.
        fingerprint: Identity of the content, see `datasets_builders.content`.
        files: File name -> size in bytes and sha256.
        shards: Split -> its Arrow files in order.
        subsets: Derived configs.
        source: Where the data came from on this machine.
        cleaning: Rule in words -> how often it was applied (`count`) and the first images (`examples`).
        left_out: What the rules left out: number of `images`, and of `boxes` of each class.
        parts: Number of images in each of the owner's parts.
        partial: Whether counts differ from the owner's, which whoever prepared it allowed.
    """

    name: str
    identity: str
    splits: dict[str, int]
    boxes: int
    per_class: dict[str, int]
    masks: int
    fingerprint: str
    files: dict[str, dict[str, Any]]
    shards: dict[str, list[str]]
    subsets: dict[str, Subset] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    cleaning: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, Any] = field(default_factory=lambda: {"images": 0, "boxes": {}})
    parts: dict[str, int] = field(default_factory=dict)
    partial: bool = False

    @property
    def images(self) -> int:
        """Number of images in all splits."""
        return sum(self.splits.values())


class DamagedError(Exception):
    """A prepared dataset that is not as its manifest says; the message names the file."""


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns size and sha256 of every file of a flat folder, by name."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest, with a checksum over itself, into the folder."""
    content = asdict(manifest)
    text = json.dumps(content | {"checksum": content_key(content)}, indent=2, ensure_ascii=False)
    with atomic_file(folder / MANIFEST) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_checked(path: Path) -> dict[str, Any] | None:
    """Reads the JSON of a manifest, checked against the checksum over itself; None where there is no such file.

    Raises:
        DamagedError: The file is there and is not what was written.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("checksum") != content_key(content):
            raise DamagedError(f"{path}: its checksum does not match")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: not a manifest ({error})") from error
    return content


def read_manifest(folder: Path) -> Manifest | None:
    """Reads the manifest of a folder; None where the folder or the manifest does not exist.

    Raises:
        DamagedError: The manifest is there and is not what was written.
    """
    path = folder / MANIFEST
    content = read_checked(path)
    if content is None:
        return None
    try:
        subsets = {name: Subset(**value) for name, value in content["subsets"].items()}
        return Manifest(**content | {"subsets": subsets})
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a manifest ({error})") from error


def check_sizes(folder: Path, manifest: Manifest) -> tuple[tuple[str, int, int], ...]:
    """Checks that every file is there in its size; returns (name, size, modification time) of each.

    Raises:
        DamagedError: A file is missing or has another size.
    """
    signature = []
    for name, expected in manifest.files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise DamagedError(f"{path}: missing")
        with _there(path):
            status = path.stat()
        if status.st_size != expected["bytes"]:
            raise DamagedError(f"{path}: has {status.st_size} bytes instead of {expected['bytes']}")
        signature.append((name, status.st_size, status.st_mtime_ns))
    return tuple(signature)


def check_content(folder: Path, manifest: Manifest) -> None:
    """Checks the sha256 of every file.

    Raises:
        DamagedError: A file's content has changed, or it is gone.
    """
    for name, expected in manifest.files.items():
        with _there(folder / name):
            sha256 = file_sha256(folder / name)
        if sha256 != expected["sha256"]:
            raise DamagedError(f"{folder / name}: its content has changed (sha256)")


@contextlib.contextmanager
def _there(path: Path) -> Iterator[None]:
    """Another process that builds the dataset again takes its files away while they are read."""
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: missing") from error
