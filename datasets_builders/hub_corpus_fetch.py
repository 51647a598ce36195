"""Fetching a published corpus: downloaded shard by shard, every row checked, then built here like any other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datasets_builders import hub
from datasets_builders.corpus import builder
from datasets_builders.corpus.shards import (
    BYTES_AT_ONCE,
    MAX_FILE_BYTES,
    ROWS_AT_ONCE,
    VERSION,
    Job,
    Row,
    corpus_features,
)
from datasets_builders.corpus.store import (
    SKIPPED_LIST,
    CorpusManifest,
    corpus_folder,
    parse_manifest,
    work_folder,
)
from datasets_builders.errors import UserError
from datasets_builders.hub_corpus_push import SHARD_PATH
from datasets_builders.hub_download import Download, RowError, commit_of, explained, parquet_rows
from datasets_builders.images import ImageError, plain_bytes
from datasets_builders.manifest import MANIFEST, DamagedError
from datasets_builders.registry import HubSource
from datasets_builders.storage import content_key

LARGEST_SKIPPED_LIST = 64_000_000
SOURCE_FACTS = (
    "name", "title", "licence", "present", "expected", "expected_by_category", "found", "found_by_category",
    "skipped", "skipped_reasons",
)  # fmt: skip
"""What this program reads of each source of a manifest."""
LARGEST_ROW_GROUP = MAX_FILE_BYTES + 2 * BYTES_AT_ONCE


def fetch_corpus(
    name: str, source: HubSource, found: CorpusManifest | None, stamp: str | None, workers: int | None
) -> CorpusManifest | None:
    """Downloads a corpus, which appears whole or not at all, unless the one that is here is the same.

    Everything is checked: the files against the manifest, each row against the schema, and counts and fingerprint,
    computed anew from the rows, against the manifest. What was downloaded stays until it is complete, so that an
    interrupted call goes on with the shard it was at. Memory does not depend on the size of the corpus, but for
    the ids of its images.

    Args:
        name: Full name of the corpus.
        source: The repository and revision.
        found: The corpus that is here; None to fetch in any case.
        stamp: The stamp that a copy must have; None for any.
        workers: Processes that check and write.

    Returns:
        The manifest of what was fetched; None where `found` is that corpus already.

    Raises:
        UserError: The Hub cannot be reached or refuses, or the copy is damaged, of another corpus, or of another
            version.
    """
    instead = _instead(name, source)
    hub.check_repo(source.repo)
    with explained(name, source, instead):
        if found is not None and _is_from(found, source):
            return None
        download = Download(name, source, instead)
        published = _published(name, source, stamp, download, instead)
        if found is not None and found.fingerprint == published.fingerprint:
            download.discard()
            return None
        download.files({path: published.files[path] for path in [*published.shards, SKIPPED_LIST]})
    plan = FetchedPlan(published, download.staging)

    def finish(made: CorpusManifest, data: Path) -> CorpusManifest:
        _compare(made, published, data, source, instead)
        shutil.copyfile(download.staging / SKIPPED_LIST, data / SKIPPED_LIST)
        origin = {"repo": source.repo, "revision": source.revision, "commit": download.commit}
        return replace(made, sources=published.sources, hub=origin)

    try:
        builder.build(name, plan, work_folder(name), corpus_folder(name), workers, None, finish)
    except RowError as error:
        raise UserError(f"{source} holds no {name}: {error}.\n{instead}") from error
    download.discard()
    return parse_manifest(corpus_folder(name) / MANIFEST)


def _is_from(found: CorpusManifest, source: HubSource) -> bool:
    """Tells whether a corpus was fetched from that repository at that revision."""
    fetched = found.hub or {}
    return fetched.get("repo") == source.repo and fetched.get("commit") == commit_of(source)


def _instead(name: str, source: HubSource) -> str:
    parameters = name.partition("/")[2]
    without = f"python -m datasets_builders prepare {name}" + ("" if parameters else " --raw DIR")
    where = "" if parameters else "get the files from their owners (docs/corpus.md), then: "
    return (
        f"  Without the Hub: {where}{without}\n"
        f"  To try again, keeping what has arrived: python -m datasets_builders prepare {name} --hub {source}"
    )


def _published(
    name: str, source: HubSource, stamp: str | None, download: Download, instead: str
) -> CorpusManifest:
    """Downloads and checks the manifest.

    Raises:
        UserError: It is of something else than this version of the corpus.
        DamagedError: It is not as it was written.
    """
    path = download.manifest()
    try:
        published = parse_manifest(path)
        assert published is not None
        _check_manifest(published)
    except (DamagedError, KeyError, TypeError, AttributeError, ValueError) as error:
        path.unlink()
        raise DamagedError(f"{MANIFEST} is not what a push writes ({error})") from error
    if published.name != name:
        raise UserError(f"{source} is a copy of {published.name}, not of {name}.")
    if published.version != VERSION or (stamp is not None and published.stamp != stamp):
        raise UserError(
            f"{source} was made by another version of this program than the one installed: it may differ from what "
            f"this version builds.\n{instead}"
        )
    return published


def _check_manifest(published: CorpusManifest) -> None:
    """Checks what is used of a manifest before its files are there.

    Raises:
        DamagedError: It names files that no push writes.
        KeyError, TypeError, AttributeError, ValueError: It has not the form of a manifest.
    """
    names = [Path(path).name for path in published.shards]
    for source in published.sources:
        missing = next((fact for fact in SOURCE_FACTS if fact not in source), None)
        if missing is not None:
            raise DamagedError(f"{MANIFEST} says nothing of {missing!r} of a source")
    sources = {str(source["name"]) for source in published.sources}
    for path in published.shards:
        match = SHARD_PATH.fullmatch(path)
        if match is None or match[1] not in sources:
            raise DamagedError(f"{MANIFEST} names files that no push writes")
    if not names or len(set(names)) < len(names):
        raise DamagedError(f"{MANIFEST} names files that no push writes")
    for path in [*published.shards, SKIPPED_LIST]:
        int(published.files[path]["bytes"]), str(published.files[path]["sha256"])
    if published.files[SKIPPED_LIST]["bytes"] > LARGEST_SKIPPED_LIST:
        raise DamagedError(f"{SKIPPED_LIST} has {published.files[SKIPPED_LIST]['bytes']:,} bytes")


def _compare(
    made: CorpusManifest, published: CorpusManifest, data: Path, source: HubSource, instead: str
) -> None:
    """Checks what was made against the manifest.

    Raises:
        UserError: They differ.
    """
    counts = [
        {entry["name"]: entry["found_by_category"] for entry in manifest.sources if entry["found"]}
        for manifest in (made, published)
    ]
    different = [
        what
        for what in ("categories", "images", "fingerprint")
        if getattr(made, what) != getattr(published, what)
    ]
    if different or counts[0] != counts[1]:
        raise UserError(
            f"{source}: what was downloaded has not the {(different or ['counts'])[0]} that its manifest says; "
            f"it is not used.\n{instead}"
        )
    seen: set[str] = set()
    for shard in made.shards:
        with pq.ParquetFile(data / shard) as parquet:
            for batch in parquet.iter_batches(1024, columns=["image_id"]):
                for image_id in batch.column(0).to_pylist():
                    if image_id in seen:
                        raise UserError(
                            f"{source}: image {image_id!r} is there twice; it is not used.\n{instead}"
                        )
                    seen.add(image_id)


@dataclass(frozen=True)
class FetchedJob:
    """A shard that was downloaded; see `shards.Job`.

    Attributes:
        path: Where it lies.
        sha256: Of that file.
    """

    name: str
    path: str
    sha256: str
    source: str
    licence: str
    categories: tuple[str, ...]
    size: int

    @property
    def key(self) -> str:
        """Hash of what the shard's content depends on."""
        return content_key([VERSION, self.sha256, self.source, self.licence, self.categories])

    def rows(self) -> Iterator[Row]:
        """Reads the shard.

        Raises:
            RowError: A row is not what a builder writes.
        """
        schema = corpus_features(self.categories).arrow_schema
        for row in parquet_rows(Path(self.path), schema, ROWS_AT_ONCE, LARGEST_ROW_GROUP):
            self._check(row)
            yield Row(row["image_id"], row["category"], row["image"]["bytes"])

    def _check(self, row: dict[str, Any]) -> None:
        where = f"{self.name}, image {row['image_id']!r}"
        if not str(row["image_id"]).startswith(f"{self.source}/") or not str(row["image_id"]).isprintable():
            raise RowError(f"{where}: not the id of an image of {self.source}")
        if (row["source"], row["licence"]) != (self.source, self.licence):
            raise RowError(f"{where}: another source or licence than its file")
        if row["category"] is None or not 0 <= row["category"] < len(self.categories):
            raise RowError(f"{where}: there is no category {row['category']}")
        stored = row["image"]
        # A path would be opened on this machine when the image is decoded.
        if stored is None or stored["bytes"] is None or stored["path"] is not None:
            raise RowError(f"{where}: the image is not embedded")
        try:
            if plain_bytes(stored["bytes"])[0] != stored["bytes"]:
                raise RowError(f"{where}: the image is not as builders store it")
        except ImageError as error:
            raise RowError(f"{where}: {error}") from error


class FetchedPlan:
    """The shards of a downloaded corpus; see `builder.Plan`.

    Args:
        published: Its manifest.
        staging: Folder of the download.
    """

    def __init__(self, published: CorpusManifest, staging: Path) -> None:
        self._published, self._staging = published, staging
        self.categories = tuple(published.categories)
        self.stamp = published.stamp
        self.total: int | None = published.images

    def expected(self) -> list[dict[str, Any]]:
        """Returns the sources, as published."""
        return self._published.sources

    def jobs(self) -> Iterator[Job]:
        """Yields the shards in the order of the corpus."""
        licences = {source["name"]: source["licence"] for source in self._published.sources}
        for shard in self._published.shards:
            source, _, file = shard.partition("/")
            path = self._staging / shard
            try:
                size = pq.read_metadata(path).num_rows
            except (OSError, ValueError) as error:
                raise RowError(f"{shard} is no Parquet file") from error
            sha256 = self._published.files[shard]["sha256"]
            yield FetchedJob(
                Path(file).stem, str(path), sha256, source, licences[source], self.categories, size
            )
