"""Corpora on this machine: where they are, whether they are whole, and how they are opened."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_builders import storage
from datasets_builders.errors import UserError
from datasets_builders.manifest import MANIFEST, DamagedError, read_checked
from datasets_builders.storage import atomic_file, content_key, file_sha256

if TYPE_CHECKING:
    import datasets

SKIPPED_LIST = "skipped.tsv"
ARROW_FOLDER = "arrow"
_DIGESTS = "sha256.json"

logger = logging.getLogger(__name__)

# File -> its size and time when this process found its content whole.
_checked: dict[Path, tuple[int, int]] = {}


@dataclass(frozen=True)
class CorpusManifest:
    """What was built.

    Attributes:
        name: Name of the corpus.
        version: Version of the rules that made it.
        stamp: Stamp of the plan that it was made from.
        categories: Category names in index order.
        images: Number of images.
        fingerprint: Identity of the content, see `shards.corpus_fingerprint`.
        files: File name -> size in bytes and sha256.
        shards: Parquet files in the order of the rows.
        sources: Each source: `name`, `present`, `licence`, `expected`, `found`, `skipped`, and by category.
        raw: Raw folder that it came from; None for procedural and fetched corpora.
        hub: The published copy that it was fetched from: `repo`, `revision`, `commit`; None where it was built.
    """

    name: str
    version: int
    stamp: str
    categories: list[str]
    images: int
    fingerprint: str
    files: dict[str, dict[str, Any]]
    shards: list[str]
    sources: list[dict[str, Any]]
    raw: str | None = None
    hub: dict[str, str] | None = None

    @property
    def skipped(self) -> int:
        """Number of files that were not taken; named in `skipped.tsv` beside the shards."""
        return sum(source["skipped"] for source in self.sources)


def corpora_folder() -> Path:
    """Returns the folder of all corpora on this machine."""
    return storage.home() / "corpora"


def corpus_folder(name: str) -> Path:
    """Returns where a corpus is, or will be."""
    return corpora_folder().joinpath(*name.split("/"))


def work_folder(name: str) -> Path:
    """Returns the folder of an unfinished build of a corpus."""
    folder = corpus_folder(name)
    return folder.with_name(f".{folder.name}.work")


def write_manifest(folder: Path, manifest: CorpusManifest) -> None:
    """Writes the manifest, with a checksum over itself, into the folder."""
    content = asdict(manifest)
    text = json.dumps(content | {"checksum": content_key(content)}, indent=1, ensure_ascii=False)
    with atomic_file(folder / MANIFEST) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def parse_manifest(path: Path) -> CorpusManifest | None:
    """Reads a manifest of a corpus; None where there is no such file.

    Raises:
        DamagedError: The file is not what was written.
    """
    content = read_checked(path)
    try:
        return None if content is None else CorpusManifest(**content)
    except TypeError as error:
        raise DamagedError(f"{path}: not a manifest of a corpus ({error})") from error


def read_manifest(name: str) -> CorpusManifest | None:
    """Reads the manifest of a corpus and checks the sizes of its files; None where there is none.

    Raises:
        DamagedError: The manifest is not what was written, or a file is missing or has another size.
    """
    folder = corpus_folder(name)
    manifest = parse_manifest(folder / MANIFEST)
    if manifest is None:
        return None
    for file, expected in manifest.files.items():
        path = folder / file
        if Path(file).name != file or not path.is_file():
            raise DamagedError(f"{path}: missing")
        if path.stat().st_size != expected["bytes"]:
            raise DamagedError(f"{path}: has {path.stat().st_size} bytes instead of {expected['bytes']}")
    return manifest


def quick_manifest(name: str) -> CorpusManifest | None:
    """Returns the manifest of a corpus that looks ready, else None; reads no image."""
    try:
        return read_manifest(name)
    except DamagedError:
        return None


def _lock_file(name: str) -> Path:
    folder = corpus_folder(name)
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds the lock of a corpus: one process builds it, the others wait.

    Raises:
        UserError: The cache folder cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = corpus_folder(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_file(name))
        try:
            acquired = lock.acquire(blocking=False)
        except Timeout:
            logger.warning("Waiting for another process that prepares %s", name)
            acquired = lock.acquire()
        with acquired:
            yield
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder.parent}: {error.strerror or error}.\n"
            f"  Set {storage.HOME_VARIABLE} to a folder with room that you can write to."
        ) from error


def discard_leftover(name: str) -> None:
    """Removes what a build left that was killed after its last step, unless a build is under way."""
    from filelock import FileLock, Timeout

    with contextlib.suppress(Timeout, OSError), FileLock(_lock_file(name), blocking=False):
        shutil.rmtree(work_folder(name))


def open_corpus(manifest: CorpusManifest, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """Opens a corpus that is there.

    Args:
        manifest: Its manifest.
        streaming: False for a memory-mapped dataset with random access: on first use the Parquet shards
            are copied once into Arrow files beside them, so the corpus takes twice its room. True to read the
            Parquet shards from start to end.

    The content of what is opened is checked, once in each process while it does not change. A damaged copy is made
    again.

    Raises:
        DamagedError: A shard's content is not what was written.
    """
    import datasets

    from datasets_builders.corpus.shards import corpus_features

    folder = corpus_folder(manifest.name)
    if streaming:
        _check_shards(folder, manifest)
        paths = [str(folder / shard) for shard in manifest.shards]
        features = corpus_features(manifest.categories)
        return datasets.load_dataset(
            "parquet", data_files={"train": paths}, features=features, split="train", streaming=True
        )
    from datasets_builders.building import read_split

    names = [f"{Path(shard).stem}.arrow" for shard in manifest.shards]
    arrow = folder / ARROW_FOLDER
    if not _is_whole(arrow, names):
        with locked(manifest.name):
            # Another process may have copied it while this one waited.
            if not _is_whole(arrow, names, say=True):
                for leftover in folder.glob(f".{ARROW_FOLDER}.*.tmp"):
                    shutil.rmtree(leftover)
                _copy_to_arrow(folder, manifest, names)
    return read_split(arrow, names)


def _check_shards(folder: Path, manifest: CorpusManifest) -> None:
    for shard in manifest.shards:
        _check(folder / shard, manifest.files[shard]["sha256"])


def _check(path: Path, sha256: str) -> None:
    status = path.stat()
    seen = (status.st_size, status.st_mtime_ns)
    if _checked.get(path) == seen:
        return
    if file_sha256(path) != sha256:
        raise DamagedError(f"{path}: its content has changed (sha256)")
    _checked[path] = seen


def _is_whole(arrow: Path, names: list[str], say: bool = False) -> bool:
    """Tells whether the copy is there as it was made; `say` warns where it is damaged."""
    try:
        digests = json.loads((arrow / _DIGESTS).read_bytes())
        for name in names:
            _check(arrow / name, digests[name])
    except FileNotFoundError:
        return False
    except (DamagedError, ValueError, KeyError, TypeError) as error:
        if say:
            logger.warning("%s is damaged and is copied again: %s", arrow, error)
        return False
    return True


def _copy_to_arrow(folder: Path, manifest: CorpusManifest, names: list[str]) -> None:
    """Copies the shards, a few rows at a time, and notes the sha256 of every copy."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datasets_builders.corpus.shards import ROWS_AT_ONCE

    _check_shards(folder, manifest)
    with storage.atomic_folder(folder / ARROW_FOLDER) as target:
        for shard, name in zip(manifest.shards, names, strict=True):
            with pq.ParquetFile(folder / shard) as parquet:
                schema = parquet.schema_arrow
                with pa.OSFile(str(target / name), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
                    for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
                        stream.write_batch(batch)
        digests = {name: file_sha256(target / name) for name in names}
        (target / _DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
