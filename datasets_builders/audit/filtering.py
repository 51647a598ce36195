"""A corpus without the images that an audit found, stored under a name of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datasets_builders import corpus
from datasets_builders.corpus import builder, store
from datasets_builders.corpus.catalogue import is_corpus
from datasets_builders.corpus.files import Skipped
from datasets_builders.corpus.shards import ROWS_AT_ONCE, Job, Row
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

VERSION = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class FilteredJob:
    """A shard of a corpus less some of its images.

    Attributes:
        name: File name without suffix.
        path: The shard that it is taken from.
        sha256: Of that file.
        source: Source of its images.
        licence: Their licence.
        categories: Categories of the corpus.
        dropped: Image ids to be left out, with the reason.
        size: Number of images of the shard.
    """

    name: str
    path: str
    sha256: str
    source: str
    licence: str
    categories: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    size: int

    @property
    def key(self) -> str:
        """Hash of what the shard's content depends on."""
        return content_key([VERSION, self.sha256, self.categories, self.dropped])

    def rows(self) -> Iterator[Row | Skipped]:
        """Reads the shard; an image that is left out gives a `Skipped`."""
        reasons = dict(self.dropped)
        with pq.ParquetFile(self.path) as parquet:
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=["image", "image_id", "category"]):
                for row in batch.to_pylist():
                    image_id = row["image_id"]
                    if image_id in reasons:
                        yield Skipped(image_id.removeprefix(f"{self.source}/"), reasons[image_id])
                    else:
                        yield Row(image_id, row["category"], row["image"]["bytes"])


class FilteredPlan:
    """The plan of a corpus that is another one less some images.

    Args:
        manifest: Manifest of the corpus that it is taken from.
        dropped: Image id -> why it is left out.
    """

    def __init__(self, manifest: store.CorpusManifest, dropped: dict[str, str]) -> None:
        self._manifest = manifest
        self._dropped = dropped
        self.categories = tuple(manifest.categories)
        self.total: int | None = manifest.images
        self.stamp = content_key([VERSION, manifest.fingerprint, sorted(dropped.items())])

    def expected(self) -> list[dict[str, Any]]:
        """Returns the sources of the corpus that it is taken from, with its counts as what is expected."""
        counted = ("found", "found_by_category", "skipped", "skipped_reasons")
        return [
            {key: value for key, value in source.items() if key not in counted}
            | {"expected": source["found"], "expected_by_category": source["found_by_category"]}
            for source in self._manifest.sources
        ]

    def jobs(self) -> Iterator[Job]:
        """Yields the shards in the order of the corpus."""
        folder = store.corpus_folder(self._manifest.name)
        for shard in self._manifest.shards:
            with pq.ParquetFile(folder / shard) as parquet:
                size = parquet.metadata.num_rows
                first = next(parquet.iter_batches(1, columns=["source", "licence"])).to_pylist()[0]
                present = {
                    image_id.as_py()
                    for batch in parquet.iter_batches(1024, columns=["image_id"])
                    for image_id in batch.column(0)
                }
            here = tuple(sorted((key, why) for key, why in self._dropped.items() if key in present))
            yield FilteredJob(
                Path(shard).stem,
                str(folder / shard),
                self._manifest.files[shard]["sha256"],
                first["source"],
                first["licence"],
                self.categories,
                here,
                size,
            )


def check_name(name: str) -> None:
    """Checks the name of a new corpus.

    Raises:
        UserError: It is the name of a corpus of the catalogue, or cannot be the name of a folder.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"--out {name!r}: use small letters, digits, '-' and '_', at most 64.")
    if is_corpus(name):
        raise UserError(f"--out {name!r} is a corpus of the catalogue; choose another name.")


def write_filtered(
    manifest: store.CorpusManifest, dropped: dict[str, str], name: str, workers: int | None
) -> corpus.PreparedCorpus:
    """Writes a corpus less some of its images; `corpus.load_corpus(name)` opens it.

    Args:
        manifest: The corpus that it is taken from.
        dropped: Image id -> why it is left out; the reasons are kept in its list of skipped files.
        name: Name of the new corpus; one of that name is replaced.
        workers: Processes.

    Raises:
        UserError: The name cannot be used, or nothing would be left.
    """
    check_name(name)
    plan = FilteredPlan(manifest, dropped)
    with store.locked(name):
        folder = builder.build(name, plan, store.work_folder(name), store.corpus_folder(name), workers, None)
    done = store.read_manifest(name)
    assert done is not None, "just written"
    return corpus.PreparedCorpus(name, folder, done, built=True)
