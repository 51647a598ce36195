"""Fetching a published dataset: downloaded shard by shard, checked against its manifest, then built here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter

from datasets_builders import building, hub
from datasets_builders.base import ROUNDING_PIXELS
from datasets_builders.errors import UserError
from datasets_builders.hub_download import Download, RowError, commit_of, explained, parquet_rows
from datasets_builders.images import ImageError, decode_mask, plain_bytes
from datasets_builders.manifest import MANIFEST, DamagedError, Manifest, read_manifest, write_manifest
from datasets_builders.registry import DatasetCard, HubSource
from datasets_builders.schema import SPLITS, detection_features
from datasets_builders.storage import atomic_folder

SHARD_PATH = re.compile(r"[a-z0-9_]+/(train|validation)-\d{5}-of-\d{5}\.parquet")
# Rows held in memory; images are large.
BATCH_ROWS = 64
LARGEST_ROW_GROUP = 4_000_000_000


def fetch(card: DatasetCard, source: HubSource, folder: Path) -> Manifest:
    """Downloads a dataset into `folder`, which appears whole or not at all.

    Everything is checked: the files against the manifest, each row against the schema, and counts and
    fingerprints, computed anew from the rows, against the manifest. What was downloaded stays until it is
    complete, so that an interrupted call goes on with the shard it was at.

    Args:
        card: Card of a dataset that is not derived.
        source: The repository and revision.
        folder: Where the Arrow files and the manifest go; what is there is replaced.

    Raises:
        UserError: The Hub cannot be reached or refuses, or the copy is damaged, of another dataset, or of
            another version of the builder.
    """
    instead = _instead(card, source)
    hub.check_repo(source.repo)
    with explained(card.name, source, instead):
        download = Download(card.name, source, instead)
        published = _published(card, source, download)
        wanted = [path for split in SPLITS for path in published.shards[split]]
        download.files({path: published.files[path] for path in wanted})
    manifest = _build(card, source, download, published, folder)
    download.discard()
    return manifest


def is_from(manifest: Manifest, card: DatasetCard, source: HubSource) -> bool:
    """Tells whether a prepared dataset was fetched from that repository at that revision.

    Raises:
        UserError: The revision is no commit, and the Hub cannot be asked which one it stands for.
    """
    fetched = manifest.source.get("hub", {})
    if fetched.get("repo") != source.repo:
        return False
    try:
        return bool(fetched["commit"] == commit_of(source))
    except hub.ERRORS as error:
        raise hub.explain(error, source.repo, f"look up {source}", _instead(card, source)) from error


def _instead(card: DatasetCard, source: HubSource) -> str:
    again = f"python -m datasets_builders prepare {card.name} --hub {source}"
    if card.origin == "procedural":
        return f"  Without the Hub: python -m datasets_builders prepare {card.name}\n  To try again: {again}"
    return (
        f"  Without the Hub: get the files from {card.homepage}\n"
        f"  then: python -m datasets_builders prepare {card.name} --raw DIR\n"
        f"  To try again, keeping what has arrived: {again}"
    )


def _published(card: DatasetCard, source: HubSource, download: Download) -> Manifest:
    """Downloads and checks the manifest.

    Raises:
        UserError: It is of something else than this version of the dataset.
        DamagedError: It is not as it was written.
    """
    path = download.manifest()
    try:
        published = read_manifest(download.staging)
    except DamagedError:
        path.unlink()
        raise
    assert published is not None
    if published.name != card.name:
        raise UserError(f"{source} is a copy of {published.name}, not of {card.name}.")
    if published.identity != building.identity(card):
        raise UserError(
            f"{source} was made by another version of this program, or from another catalogue, than the "
            f"one installed: it may differ from what this version builds.\n" + _instead(card, source)
        )
    try:
        _check_files(published)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(f"{MANIFEST} is not what a push writes ({error})") from error
    return published


def _check_files(published: Manifest) -> None:
    """Checks what is used of a manifest before its files are there.

    Raises:
        DamagedError: It names files that no push writes.
        KeyError, TypeError, AttributeError, ValueError: It has not the form of a manifest.
    """
    if set(published.shards) != set(SPLITS):
        raise DamagedError(f"{MANIFEST} has not the splits {', '.join(SPLITS)}")
    for path in [path for paths in published.shards.values() for path in paths]:
        if not SHARD_PATH.fullmatch(path) or path not in published.files:
            raise DamagedError(f"{MANIFEST} names files that no push writes")
        int(published.files[path]["bytes"]), str(published.files[path]["sha256"])


def _build(
    card: DatasetCard, source: HubSource, download: Download, published: Manifest, folder: Path
) -> Manifest:
    """Turns the downloaded Parquet files into a prepared dataset."""
    features = detection_features(card.classes)
    with atomic_folder(folder) as target:
        shards: dict[str, list[str]] = {split: [] for split in SPLITS}
        seen: set[str] = set()
        for split in SPLITS:
            for path in published.shards[split]:
                shards[split].append(f"{split}-{len(shards[split]):05d}.arrow")
                try:
                    _write_arrow(download.staging / path, target / shards[split][-1], features, card, seen)
                except RowError as error:
                    raise UserError(
                        f"{source}: {path} holds no {card.name}: {error}.\n{_instead(card, source)}"
                    ) from error
        found = building.summarise(card, target, shards)
        for what in ("splits", "boxes", "per_class", "masks", "fingerprint", "subsets"):
            if getattr(found, what) != getattr(published, what):
                raise UserError(
                    f"{source}: what was downloaded has not the {what} that its manifest says; it is not used.\n"
                    + _instead(card, source)
                )
        origin = {"repo": source.repo, "revision": source.revision, "commit": download.commit}
        manifest = replace(published, files=found.files, shards=shards, source={"hub": origin})
        write_manifest(target, manifest)
    return manifest


def _write_arrow(
    parquet: Path, arrow: Path, features: datasets.Features, card: DatasetCard, seen: set[str]
) -> None:
    with ArrowWriter(features=features, path=str(arrow)) as writer:
        for row in parquet_rows(parquet, features.arrow_schema, BATCH_ROWS, LARGEST_ROW_GROUP):
            _check_row(row, card)
            if row["image_id"] in seen:
                raise RowError(f"image {row['image_id']!r}: is there twice")
            seen.add(row["image_id"])
            writer.write(row)
        writer.finalize()


def _check_row(row: dict[str, Any], card: DatasetCard) -> None:
    """Checks one row as the builders check what they write.

    Raises:
        RowError: It is not what a builder writes.
    """
    where = f"image {row['image_id']!r}"
    for column in ("image", "mask"):
        stored = row[column]
        # A path would be opened on this machine when the image is decoded.
        if stored is not None and (stored["bytes"] is None or stored["path"] is not None):
            raise RowError(f"{where}: {column} is not embedded")
    if row["image_id"] is None or row["image"] is None:
        raise RowError(f"{where}: there is no image")
    size = row["width"], row["height"]
    try:
        if plain_bytes(row["image"]["bytes"]) != (row["image"]["bytes"], size):
            raise RowError(f"{where}: the image has another size")
        if row["mask"] is not None and decode_mask(row["mask"]["bytes"]).shape[::-1] != size:
            raise RowError(f"{where}: the mask has another size")
    except ImageError as error:
        raise RowError(f"{where}: {error}") from error
    objects = row["objects"]
    if objects is None or any(values is None for values in objects.values()):
        raise RowError(f"{where}: the objects are not lists")
    if len({len(values) for values in objects.values()}) != 1:
        raise RowError(f"{where}: the lists of objects differ in length")
    if None in objects["id"] or None in objects["area"]:
        raise RowError(f"{where}: an object has no id, or no area")
    for category, box in zip(objects["category"], objects["bbox"], strict=True):
        if category is None or not 0 <= category < len(card.classes):
            raise RowError(f"{where}: there is no class {category}")
        if box is None or any(value is None for value in box):
            raise RowError(f"{where}: a box is incomplete")
        x, y, width, height = box
        right, bottom = size[0] + ROUNDING_PIXELS, size[1] + ROUNDING_PIXELS
        # Written so that it also refuses NaN.
        if not (
            x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= right and y + height <= bottom
        ):
            raise RowError(f"{where}: the box {box} is not inside the image")
