"""The plan of a corpus from files: which sources a raw folder holds, and the shards that they give."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets_builders.archives import TAR_SUFFIXES, ZIP_SUFFIXES, unpacked
from datasets_builders.corpus.catalogue import OWN_PREFIX
from datasets_builders.corpus.files import (
    PLAIN_FOLDERS,
    ImageFile,
    Skipped,
    images_below,
    is_image_name,
    listing,
    shown,
)
from datasets_builders.corpus.readers import read
from datasets_builders.corpus.shards import VERSION, FileJob
from datasets_builders.corpus.sources import (
    OWN_SOURCES,
    Source,
    folder_key,
    known_sources,
    own_source,
    own_sources,
)
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_folder, canonical_json, content_key

SHARD_IMAGES = 1000
SHARD_BYTES = 256 * 2**20
"""A shard ends when it has so many files, or files of so many bytes."""


@dataclass(frozen=True)
class Place:
    """Where a source was found: a folder, or an archive that is yet to be unpacked."""

    source: Source
    path: Path
    is_archive: bool


@dataclass
class FilePlan:
    """The jobs of a corpus from files; see `builder.Plan`.

    Attributes:
        name: Name of the corpus.
        raw: The raw folder.
        scratch: Folder for unpacked archives.
        sources: The sources that the corpus takes.
        places: Those that are there, in the order of their names.
        ignored: Entries of the raw folder that are no source.
        categories: Categories of the corpus in index order.
    """

    name: str
    raw: Path
    scratch: Path
    sources: dict[str, Source]
    categories: tuple[str, ...]
    places: list[Place] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    stamp: str = ""
    total: int | None = None

    def expected(self) -> list[dict[str, Any]]:
        """Facts of every source for the table of counts, there or not."""
        present = {place.source.name for place in self.places}
        return [
            {
                "name": source.name,
                "title": source.title,
                "licence": source.licence,
                "present": source.name in present,
                "expected": source.expected_images,
                "expected_by_category": source.expected_by_category,
                "seen_in_the_wild": source.seen_in_the_wild,
                "categories_from": source.categories_from,
                "homepage": source.homepage,
            }
            for source in self.sources.values()
        ]

    def jobs(self) -> Iterator[FileJob]:
        """Yields the shards in order, listing the raw folder as it goes."""
        for place in self.places:
            folder = place.path
            if place.is_archive:
                # Another archive of that name, given since the build was interrupted, is unpacked anew.
                folder = self.scratch / f"{content_key(_state(place.path))[:16]}-{place.source.name}"
                if not folder.is_dir():
                    _unpack(place.path, folder)
            try:
                yield from _shards(place.source, folder, self.categories)
            except OSError as error:
                raise _unreadable(self.name, error) from error


def plan(name: str, entry: dict[str, Any], raw: Path, scratch: Path) -> FilePlan:
    """Looks through a raw folder: which sources it holds, how many images, and the stamp of all that.

    Reads no image and unpacks nothing. The stamp changes when a file is added, removed or changed, or when
    the rules for its source do.

    Raises:
        UserError: There is no such folder, it holds no source of the corpus, or a source does not have its
            layout.
    """
    if "own" in entry:
        return _own_plan(name, raw, scratch)
    if not raw.is_dir():
        raise UserError(
            f"{name}: there is no folder {raw}.\n"
            f"  It should hold one folder (or .zip, .tar archive) for each source; see docs/corpus.md.\n"
            f"  then: python -m datasets_builders prepare {name} --raw DIR"
        )
    try:
        own = own_sources(raw) if "own" in entry.get("groups", ()) else {}
        sources = _taken(entry, own)
        categories = tuple(entry["categories"]) + _new_categories(entry["categories"], own.values())
        found = FilePlan(name, raw, scratch, sources, categories)
        _locate(found)
        _stamp(found)
    except OSError as error:
        raise _unreadable(name, error) from error
    return found


def _own_plan(name: str, raw: Path, scratch: Path) -> FilePlan:
    """Plans a corpus from any folder of images: each folder in it is a category, if it holds nothing but folders.

    Where images lie in it directly, where it holds one folder of images, or where its folders only tell images from
    labels or one split from another, there is one category.

    Raises:
        UserError: There is no such folder, or it cannot be read.
    """
    if not raw.is_dir():
        raise UserError(
            f"{name}: there is no folder {raw}. It should hold your images, in any folders.\n"
            f"  then: python -m datasets_builders prepare {name} --raw DIR"
        )
    own = name.removeprefix(OWN_PREFIX)
    try:
        entries = listing(raw)
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        filled = {
            shown(entry.name): shown(entry.name)
            for entry in folders
            if any(isinstance(item, ImageFile) for item in images_below(Path(entry.path), raw))
        }
        plain = any(is_image_name(entry.name) for entry in entries if entry not in folders)
        telling = not any(folder.casefold() in PLAIN_FOLDERS for folder in filled)
        by_folder = len(filled) > 1 and telling and not plain
        layout = {"kind": "class_folders"} if by_folder else {"kind": "images"}
        kind: dict[str, Any] = {"categories": filled} if by_folder else {"category": own}
        source = own_source(own, {"licence": "own", "layout": layout} | kind)
        categories = tuple(filled.values()) if by_folder else (own,)
        found = FilePlan(name, raw, scratch, {own: source}, categories, [Place(source, raw, False)])
        _stamp(found)
    except OSError as error:
        raise _unreadable(name, error) from error
    return found


def _unpack(archive: Path, target: Path) -> None:
    """Unpacks an archive into `target`, which appears whole or not at all.

    Every file gets the archive's time of change, so that a second unpacking gives equal files.

    Raises:
        UserError: The archive is refused, see `archives.unpacked`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob("unpacked-*"):
        shutil.rmtree(leftover)
    changed = archive.stat().st_mtime_ns
    with unpacked(archive, target.parent) as folder, atomic_folder(target) as whole:
        for path in folder.rglob("*"):
            os.utime(path, ns=(changed, changed))
        for path in folder.iterdir():
            path.rename(whole / path.name)


def _state(archive: Path) -> list[str | int]:
    """Returns what tells an archive from another one: its name, size and time of change."""
    status = archive.stat()
    return [archive.name, status.st_size, status.st_mtime_ns]


def _archive_stem(name: str) -> str | None:
    """Returns an archive's name without its suffix; None for other files."""
    suffixes = sorted((*ZIP_SUFFIXES, *TAR_SUFFIXES), key=len, reverse=True)
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), None)
    return name[: -len(suffix)] if suffix else None


def _unreadable(name: str, error: OSError) -> UserError:
    return UserError(f"{name}: cannot read {error.filename}: {error.strerror}.")


def _taken(entry: dict[str, Any], own: dict[str, Source]) -> dict[str, Source]:
    everything = known_sources() | own
    if "sources" in entry:
        return {name: everything[name] for name in entry["sources"]}
    return {name: source for name, source in everything.items() if source.group in entry["groups"]}


def _new_categories(known: Sequence[str], own: Any) -> tuple[str, ...]:
    named = [category for source in own for category in source.expected_by_category]
    return tuple(dict.fromkeys(category for category in named if category not in known))


def _locate(plan: FilePlan) -> None:
    """Finds the folder or archive of each source; a folder wins over an archive."""
    by_key = {k: source for source in plan.sources.values() for k in source.folder_keys}
    places: dict[str, Place] = {}
    archives: dict[str, Place] = {}
    for entry in listing(plan.raw):
        path = Path(entry.path)
        # A link to a folder is the user's own arrangement at this level; below it none is followed.
        is_folder = path.is_dir()
        stem = None if is_folder else _archive_stem(entry.name)
        source = by_key.get(folder_key(shown(entry.name if is_folder else stem or "")))
        if source is None or not (is_folder or stem):
            if entry.name != OWN_SOURCES:
                plan.ignored.append(shown(entry.name) + ("/" if is_folder else ""))
            continue
        kind = places if is_folder else archives
        if source.name in kind:
            raise UserError(
                f"{plan.name}: {kind[source.name].path.name} and {entry.name} in {plan.raw} are both "
                f"{source.name}. Move one of them away."
            )
        kind[source.name] = Place(source, path, not is_folder)
    plan.places = [place for _, place in sorted((archives | places).items())]
    if not plan.places:
        names = ", ".join(plan.sources)
        raise UserError(
            f"{plan.name}: {plan.raw} holds none of its sources.\n"
            f"  Expected are folders (or .zip, .tar archives) named like: {names}.\n"
            f"  Where to get each: docs/corpus.md"
        )


def _stamp(plan: FilePlan) -> None:
    """Works out `stamp` and `total`; the number of images stays unknown while an archive is packed."""
    text = hashlib.sha256(canonical_json([VERSION, plan.categories]).encode())
    total = 0
    for place in plan.places:
        source = place.source
        rules = source.model_dump(include={"name", "licence", "layout", "category", "categories"})
        text.update(content_key(rules).encode())
        if place.is_archive:
            text.update(canonical_json(_state(place.path)).encode())
            continue
        for job in _shards(source, place.path, plan.categories):
            text.update(job.key.encode())
            total += job.size
    plan.stamp = text.hexdigest()
    plan.total = None if any(place.is_archive for place in plan.places) else total


def _shards(source: Source, folder: Path, categories: tuple[str, ...]) -> Iterator[FileJob]:
    """Cuts a source's images into shards, in order; the cut depends on names and sizes of files alone."""
    index = {category: place for place, category in enumerate(categories)}
    files: list[tuple[str, str, int, int, int]] = []
    skipped: list[Skipped] = []
    held, number = 0, 0

    def job() -> FileJob:
        name = f"{source.name}-{number:05d}"
        return FileJob(name, source.name, source.licence, categories, tuple(files), tuple(skipped))

    for item in read(source, folder):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            file, category = item
            assert isinstance(file, ImageFile)
            files.append((str(file.path), file.name, index[category], file.size, file.changed))
            held += file.size
        if len(files) + len(skipped) >= SHARD_IMAGES or held >= SHARD_BYTES:
            yield job()
            files, skipped, held, number = [], [], 0, number + 1
    if files or skipped:
        yield job()
