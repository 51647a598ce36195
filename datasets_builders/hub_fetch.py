"""Fetching a published dataset: downloaded shard by shard, checked against its manifest, then built here."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.arrow_writer import ArrowWriter
from datasets.table import CastError, table_cast
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from datasets_builders import building, hub, storage
from datasets_builders.base import ROUNDING_PIXELS
from datasets_builders.errors import UserError
from datasets_builders.images import ImageError, decode_mask, plain_bytes
from datasets_builders.manifest import MANIFEST, DamagedError, Manifest, read_manifest, write_manifest
from datasets_builders.registry import DatasetCard, HubSource
from datasets_builders.schema import SPLITS, detection_features
from datasets_builders.storage import atomic_folder, file_sha256

logger = logging.getLogger(__name__)

LARGEST_MANIFEST = 64_000_000
SHARD_PATH = re.compile(r"[a-z0-9_]+/(train|validation)-\d{5}-of-\d{5}\.parquet")
# Rows held in memory; images are large.
BATCH_ROWS = 64
LARGEST_ROW_GROUP = 4_000_000_000
DOWNLOADS = 2


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
    try:
        commit = _commit_of(source)
        staging = storage.home() / "hub" / "fetch" / f"{source.repo.replace('/', '--')}@{commit}"
        download = _Download(card, source, commit, staging)
        published = download.manifest()
        download.shards(published)
    except UserError:
        raise
    except DamagedError as error:
        raise UserError(f"{source}: {error}.\n{instead}") from error
    except hub.ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            # Of the disk, not of the network.
            raise
        raise hub.explain(error, source.repo, f"download {card.name} from {source}", instead) from error
    manifest = _build(card, source, commit, staging, published, folder)
    # Together with what earlier calls left of other commits.
    for leftover in staging.parent.glob(staging.name.replace(commit, "*")):
        shutil.rmtree(leftover)
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
        return bool(fetched["commit"] == _commit_of(source))
    except hub.ERRORS as error:
        raise hub.explain(error, source.repo, f"look up {source}", _instead(card, source)) from error


def _commit_of(source: HubSource) -> str:
    """Returns the commit that a revision stands for; asks the Hub unless it is a commit already."""
    if hub.COMMIT_HASH.fullmatch(source.revision):
        return source.revision
    info = hub.patiently(
        lambda: hub.client().dataset_info(source.repo, revision=source.revision), f"Looking at {source}"
    )
    return str(info.sha)


def _instead(card: DatasetCard, source: HubSource) -> str:
    again = f"python -m datasets_builders prepare {card.name} --hub {source}"
    if card.origin == "procedural":
        return f"  Without the Hub: python -m datasets_builders prepare {card.name}\n  To try again: {again}"
    return (
        f"  Without the Hub: get the files from {card.homepage}\n"
        f"  then: python -m datasets_builders prepare {card.name} --raw DIR\n"
        f"  To try again, keeping what has arrived: {again}"
    )


class _Download:
    """The files of one commit, in a folder where they wait until all are there."""

    def __init__(self, card: DatasetCard, source: HubSource, commit: str, staging: Path) -> None:
        self.card, self.source, self.commit, self.staging = card, source, commit, staging
        self.api: HfApi = hub.client()
        staging.mkdir(parents=True, exist_ok=True)
        # The client library gives each attempt a file of its own and leaves it behind when it is killed.
        for leftover in (staging / ".cache").rglob("*.incomplete"):
            leftover.unlink()

    def manifest(self) -> Manifest:
        """Downloads and checks the manifest.

        Raises:
            UserError: It is of something else than this version of the dataset.
            DamagedError: It is not as it was written.
        """
        sizes = self._sizes([MANIFEST])
        if MANIFEST not in sizes:
            raise UserError(
                f"{self.source} holds no {MANIFEST}: it is no copy made by `python -m datasets_builders push`.\n"
                + _instead(self.card, self.source)
            )
        if sizes[MANIFEST] > LARGEST_MANIFEST:
            raise DamagedError(f"{MANIFEST} has {sizes[MANIFEST]:,} bytes")
        path = self._get(MANIFEST)
        try:
            published = read_manifest(self.staging)
        except DamagedError:
            path.unlink()
            raise
        assert published is not None
        if published.name != self.card.name:
            raise UserError(f"{self.source} is a copy of {published.name}, not of {self.card.name}.")
        if published.identity != building.identity(self.card):
            raise UserError(
                f"{self.source} was made by another version of this program, or from another catalogue, than the "
                f"one installed: it may differ from what this version builds.\n"
                + _instead(self.card, self.source)
            )
        names = [path for paths in published.shards.values() for path in paths]
        if set(published.shards) != set(SPLITS):
            raise DamagedError(f"{MANIFEST} has not the splits {', '.join(SPLITS)}")
        if any(not SHARD_PATH.fullmatch(name) or name not in published.files for name in names):
            raise DamagedError(f"{MANIFEST} names files that no push writes")
        return published

    def _sizes(self, paths: list[str]) -> dict[str, int]:
        found = hub.patiently(
            lambda: self.api.get_paths_info(
                self.source.repo, paths, revision=self.commit, repo_type="dataset"
            ),
            f"Looking at {self.source}",
        )
        return {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}

    def shards(self, published: Manifest) -> None:
        """Downloads the shards that are not here yet.

        Raises:
            DamagedError: One is missing there, or arrives with another content than the manifest says.
            UserError: There is no room for them.
        """
        wanted = [path for split in SPLITS for path in published.shards[split]]
        missing = [path for path in wanted if not self._is_whole(path, published)]
        needed = sum(published.files[path]["bytes"] for path in missing)
        if missing:
            sizes = self._sizes(missing)
            for path in missing:
                if sizes.get(path) != published.files[path]["bytes"]:
                    raise DamagedError(f"{path} has not the size that {MANIFEST} says")
            free = shutil.disk_usage(self.staging).free
            # Once as downloaded, once as built.
            if needed + sum(published.files[path]["bytes"] for path in wanted) > free:
                raise UserError(
                    f"{self.card.name}: not enough room in {storage.home()}: {2 * needed:,} bytes are needed, "
                    f"{free:,} are free.\n  Set {storage.HOME_VARIABLE} to a folder with more."
                )
        logger.warning(
            "Downloading %s from %s: %d files, %s bytes (%d files are here)",
            self.card.name,
            self.source,
            len(missing),
            f"{needed:,}",
            len(wanted) - len(missing),
        )
        for path in missing:
            for _ in range(DOWNLOADS):
                self._get(path)
                if self._is_whole(path, published):
                    break
                (self.staging / path).unlink()
                logger.warning("%s arrived damaged", path)
            else:
                raise DamagedError(f"{path} has not the content that {MANIFEST} says")

    def _is_whole(self, path: str, published: Manifest) -> bool:
        local, expected = self.staging / path, published.files[path]
        return (
            local.is_file()
            and local.stat().st_size == expected["bytes"]
            and file_sha256(local) == expected["sha256"]
        )

    def _get(self, path: str) -> Path:
        return Path(
            hub.patiently(
                lambda: self.api.hf_hub_download(
                    self.source.repo,
                    path,
                    repo_type="dataset",
                    revision=self.commit,
                    local_dir=self.staging,
                ),
                f"Downloading {path}",
            )
        )


def _build(
    card: DatasetCard, source: HubSource, commit: str, staging: Path, published: Manifest, folder: Path
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
                    _write_arrow(staging / path, target / shards[split][-1], features, card, seen)
                except _RowError as error:
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
        origin = {"repo": source.repo, "revision": source.revision, "commit": commit}
        manifest = replace(published, files=found.files, shards=shards, source={"hub": origin})
        write_manifest(target, manifest)
    return manifest


class _RowError(Exception):
    """A row, or a file, that is not as the schema says."""


def _write_arrow(
    parquet: Path, arrow: Path, features: datasets.Features, card: DatasetCard, seen: set[str]
) -> None:
    with ArrowWriter(features=features, path=str(arrow)) as writer:
        for row in _rows(parquet, features.arrow_schema):
            _check_row(row, card)
            if row["image_id"] in seen:
                raise _RowError(f"image {row['image_id']!r}: is there twice")
            seen.add(row["image_id"])
            writer.write(row)
        writer.finalize()


def _rows(parquet: Path, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(parquet) as file:
            groups = [file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups)]
            if max(groups, default=0) > LARGEST_ROW_GROUP:
                raise _RowError(f"it would take {max(groups):,} bytes of memory")
            for batch in file.iter_batches(BATCH_ROWS):
                yield from table_cast(pa.Table.from_batches([batch]), schema).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowTypeError, CastError) as error:
        raise _RowError(str(error).splitlines()[0]) from error


def _check_row(row: dict[str, Any], card: DatasetCard) -> None:
    """Checks one row as the builders check what they write.

    Raises:
        _RowError: It is not what a builder writes.
    """
    where = f"image {row['image_id']!r}"
    for column in ("image", "mask"):
        stored = row[column]
        # A path would be opened on this machine when the image is decoded.
        if stored is not None and (stored["bytes"] is None or stored["path"] is not None):
            raise _RowError(f"{where}: {column} is not embedded")
    if row["image_id"] is None or row["image"] is None:
        raise _RowError(f"{where}: there is no image")
    size = row["width"], row["height"]
    try:
        if plain_bytes(row["image"]["bytes"]) != (row["image"]["bytes"], size):
            raise _RowError(f"{where}: the image has another size")
        if row["mask"] is not None and decode_mask(row["mask"]["bytes"]).shape[::-1] != size:
            raise _RowError(f"{where}: the mask has another size")
    except ImageError as error:
        raise _RowError(f"{where}: {error}") from error
    objects = row["objects"]
    if objects is None or any(values is None for values in objects.values()):
        raise _RowError(f"{where}: the objects are not lists")
    if len({len(values) for values in objects.values()}) != 1:
        raise _RowError(f"{where}: the lists of objects differ in length")
    for category, box in zip(objects["category"], objects["bbox"], strict=True):
        if category is None or not 0 <= category < len(card.classes):
            raise _RowError(f"{where}: there is no class {category}")
        if box is None or any(value is None for value in box):
            raise _RowError(f"{where}: a box is incomplete")
        x, y, width, height = box
        right, bottom = size[0] + ROUNDING_PIXELS, size[1] + ROUNDING_PIXELS
        # Written so that it also refuses NaN.
        if not (
            x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= right and y + height <= bottom
        ):
            raise _RowError(f"{where}: the box {box} is not inside the image")
