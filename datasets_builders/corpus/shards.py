"""The Parquet files of a corpus, each made on its own from a job: the unit of work and of resuming."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_builders.corpus.files import Skipped
from datasets_builders.images import ImageError, image_digest, plain_bytes
from datasets_builders.storage import atomic_file, canonical_json, content_key, file_sha256

if TYPE_CHECKING:
    from datasets import Features

VERSION = 1
"""Raised when the same input gives other rows: shards and corpora of another version are made again."""
MAX_FILE_BYTES = 200 * 2**20
ROWS_AT_ONCE = 64
BYTES_AT_ONCE = 16 * 2**20
"""Images held in memory before they are written: so many, or so many bytes."""


@dataclass(frozen=True)
class Row:
    """One image of a corpus: its id, the index of its category, and the encoded image."""

    image_id: str
    category: int
    image: bytes


class Job(Protocol):
    """What is needed to make one shard; it travels to another process."""

    @property
    def name(self) -> str:
        """File name of the shard without suffix."""

    @property
    def key(self) -> str:
        """Hash of all that the shard's content depends on."""

    @property
    def size(self) -> int:
        """Number of images looked at."""

    @property
    def source(self) -> str:
        """Name of the source of all its images."""

    @property
    def licence(self) -> str:
        """Licence of all its images."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories of the corpus in index order."""

    def rows(self) -> Iterator[Row | Skipped]:
        """Makes the rows in order; an image that cannot be used gives a `Skipped`."""


@dataclass(frozen=True)
class FileJob:
    """A shard of image files.

    Attributes:
        files: (path, name inside the source, category index, size in bytes, time of change in ns) of each.
        skipped: What the reader did not take between these files.
    """

    name: str
    source: str
    licence: str
    categories: tuple[str, ...]
    files: tuple[tuple[str, str, int, int, int], ...]
    skipped: tuple[Skipped, ...]

    @property
    def key(self) -> str:
        """Hash of names, sizes and times of change, and of the categories; not of the files' content."""
        files = [list(file[1:]) for file in self.files]
        skipped = [[item.name, item.reason] for item in self.skipped]
        return content_key([VERSION, self.source, self.licence, self.categories, files, skipped])

    @property
    def size(self) -> int:
        """Number of files."""
        return len(self.files)

    def rows(self) -> Iterator[Row | Skipped]:
        """Reads the files; see `datasets_builders.images` for what happens to each kind of image."""
        yield from self.skipped
        for path, name, category, size, _ in self.files:
            if size > MAX_FILE_BYTES:
                yield Skipped(name, f"larger than {MAX_FILE_BYTES} bytes")
                continue
            try:
                data, _ = plain_bytes(Path(path).read_bytes())
            except ImageError as error:
                yield Skipped(name, str(error))
            except OSError as error:
                yield Skipped(name, f"cannot be read: {error.strerror}")
            else:
                yield Row(f"{self.source}/{name}", category, data)


@dataclass(frozen=True)
class Part:
    """What is known of a shard once it is made; kept beside it while the corpus is being built.

    Attributes:
        name: As in the job.
        key: As in the job.
        file: The Parquet file's name; None where no image could be used.
        bytes: Its size.
        sha256: Of the file.
        source: Source of all its images.
        digests: Digest of each row, in order.
        counts: Category -> number of images.
        skipped: (name, reason) of what was not taken.
    """

    name: str
    key: str
    file: str | None
    bytes: int
    sha256: str | None
    source: str
    digests: list[str]
    counts: dict[str, int]
    skipped: list[tuple[str, str]]


def corpus_features(categories: Sequence[str]) -> Features:
    """Returns the features of a corpus with the given categories.

    `image` holds the encoded file and decodes to RGB; `image_id` is `SOURCE/name of the file` and unique;
    `licence` is what the owner states, for each image.
    """
    from datasets import ClassLabel, Features, Image, Value  # takes a second, and a plan needs none of it

    return Features(
        {
            "image": Image(mode="RGB"),
            "image_id": Value("string"),
            "category": ClassLabel(names=list(categories)),
            "source": Value("string"),
            "licence": Value("string"),
        }
    )


def row_digest(image_id: str, category: str, image: bytes) -> str:
    """Returns the sha256 of one row's content: id, name of the category, and image (see `image_digest`)."""
    return content_key([image_id, category, image_digest(image)])


def corpus_fingerprint(categories: Sequence[str], digests: Iterable[str]) -> str:
    """Returns the fingerprint of a corpus from the digests of its rows, in the order of the rows."""
    total = hashlib.sha256(canonical_json(list(categories)).encode())
    for digest in digests:
        total.update(b"\n" + digest.encode())
    return total.hexdigest()


class ShardWriter:
    """Writes rows to a Parquet file, holding few of them in memory."""

    def __init__(self, path: Path, categories: Sequence[str], source: str, licence: str) -> None:
        self._schema = corpus_features(categories).arrow_schema
        self._constant = {"source": source, "licence": licence}
        # The images are compressed already.
        self._writer = pq.ParquetWriter(path, self._schema, compression="none", write_statistics=False)
        self._rows: list[dict[str, Any]] = []
        self._held = 0

    def add(self, row: Row) -> None:
        """Adds one row."""
        self._rows.append(
            {"image": {"bytes": row.image, "path": None}, "image_id": row.image_id, "category": row.category}
            | self._constant
        )
        self._held += len(row.image)
        if len(self._rows) >= ROWS_AT_ONCE or self._held >= BYTES_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._held = [], 0

    def close(self) -> None:
        """Writes what is left, and the file's end."""
        self._flush()
        self._writer.close()


def part_path(work: Path, name: str) -> Path:
    """Returns where the description of a made shard is, in the work folder of a build."""
    return work / "parts" / f"{name}.json"


def data_folder(work: Path) -> Path:
    """Returns where the shards themselves are, in the work folder of a build."""
    return work / "data"


def make_shard(job: Job, work: Path) -> Part:
    """Makes one shard: its Parquet file, then the `Part` that says that it is whole."""
    digests: list[str] = []
    counts: Counter[str] = Counter()
    skipped: list[tuple[str, str]] = []
    path = data_folder(work) / f"{job.name}.parquet"
    with atomic_file(path) as temporary:
        writer = ShardWriter(temporary, job.categories, job.source, job.licence)
        try:
            for row in job.rows():
                if isinstance(row, Skipped):
                    skipped.append((row.name, row.reason))
                    continue
                category = job.categories[row.category]
                writer.add(row)
                digests.append(row_digest(row.image_id, category, row.image))
                counts[category] += 1
        finally:
            writer.close()
    if not digests:
        path.unlink()
    part = Part(
        name=job.name,
        key=job.key,
        file=path.name if digests else None,
        bytes=path.stat().st_size if digests else 0,
        sha256=file_sha256(path) if digests else None,
        source=job.source,
        digests=digests,
        counts=dict(counts),
        skipped=skipped,
    )
    with atomic_file(part_path(work, job.name)) as temporary:
        temporary.write_text(json.dumps(asdict(part), ensure_ascii=False), encoding="utf-8")
    return part


def read_part(work: Path, name: str) -> Part:
    """Reads the description of a made shard.

    Raises:
        FileNotFoundError: The shard was not finished.
        ValueError: What is there is not such a description.
    """
    try:
        content = json.loads(part_path(work, name).read_text(encoding="utf-8"))
        return Part(**content | {"skipped": [(what, why) for what, why in content["skipped"]]})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{part_path(work, name)}: {error}") from error


def is_made(job: Job, work: Path) -> bool:
    """Tells whether a shard is there, whole, and made from what the job says."""
    try:
        part = read_part(work, job.name)
        if part.key != job.key:
            return False
        if part.file is None:
            return True
        path = data_folder(work) / part.file
        return path.stat().st_size == part.bytes and file_sha256(path) == part.sha256
    except (OSError, ValueError):
        return False
