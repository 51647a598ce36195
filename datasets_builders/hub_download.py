"""Downloading what a push published: file by file, checked, and kept until everything is here."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import CastError, table_cast
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from datasets_builders import hub, storage
from datasets_builders.errors import UserError
from datasets_builders.manifest import MANIFEST, DamagedError
from datasets_builders.registry import HubSource
from datasets_builders.storage import file_sha256

logger = logging.getLogger(__name__)

LARGEST_MANIFEST = 64_000_000
DOWNLOADS = 2


class RowError(Exception):
    """A row, or a file, that is not as the schema says."""


@contextlib.contextmanager
def explained(name: str, source: HubSource, instead: str) -> Iterator[None]:
    """Turns what goes wrong while downloading into errors that say what to do.

    Args:
        name: What is downloaded.
        source: The repository and revision.
        instead: Lines that say how to go on.

    Raises:
        UserError: In place of `DamagedError` and of the errors of the network.
    """
    try:
        yield
    except UserError:
        raise
    except DamagedError as error:
        raise UserError(f"{source}: {error}.\n{instead}") from error
    except hub.ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            # Of the disk, not of the network.
            raise
        raise hub.explain(error, source.repo, f"download {name} from {source}", instead) from error


def commit_of(source: HubSource) -> str:
    """Returns the commit that a revision stands for; asks the Hub unless it is a commit already."""
    if hub.COMMIT_HASH.fullmatch(source.revision):
        return source.revision
    info = hub.patiently(
        lambda: hub.client().dataset_info(source.repo, revision=source.revision), f"Looking at {source}"
    )
    return str(info.sha)


class Download:
    """The files of one commit, in a folder where they wait until all are there.

    Args:
        name: What is downloaded.
        source: The repository and revision.
        instead: Lines for errors that say how to go on.

    Attributes:
        commit: The commit that the revision stands for.
        staging: The folder; an interrupted download goes on in it.
    """

    def __init__(self, name: str, source: HubSource, instead: str) -> None:
        self.name, self.source, self.instead = name, source, instead
        self.commit = commit_of(source)
        self.staging = storage.home() / "hub" / "fetch" / f"{source.repo.replace('/', '--')}@{self.commit}"
        self.api: HfApi = hub.client()
        self.staging.mkdir(parents=True, exist_ok=True)
        # The client library gives each attempt a file of its own and leaves it behind when it is killed.
        for leftover in (self.staging / ".cache").rglob("*.incomplete"):
            leftover.unlink()

    def manifest(self) -> Path:
        """Downloads the manifest.

        Raises:
            UserError: There is none.
            DamagedError: It is larger than any that a push writes.
        """
        sizes = self._sizes([MANIFEST])
        if MANIFEST not in sizes:
            raise UserError(
                f"{self.source} holds no {MANIFEST}: it is no copy made by `python -m datasets_builders push`.\n"
                + self.instead
            )
        if sizes[MANIFEST] > LARGEST_MANIFEST:
            raise DamagedError(f"{MANIFEST} has {sizes[MANIFEST]:,} bytes")
        return self._get(MANIFEST)

    def files(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Downloads the files that are not here yet.

        Args:
            wanted: Path -> its `bytes` and `sha256`, as the manifest says.

        Raises:
            DamagedError: One is missing there, or arrives with another content than the manifest says.
            UserError: There is no room for them.
        """
        missing = [path for path in wanted if not self._is_whole(path, wanted[path])]
        download = sum(wanted[path]["bytes"] for path in missing)
        if missing:
            sizes = self._sizes(missing)
            for path in missing:
                if sizes.get(path) != wanted[path]["bytes"]:
                    raise DamagedError(f"{path} has not the size that {MANIFEST} says")
            free = shutil.disk_usage(self.staging).free
            # What is missing as downloaded, and all of it as built.
            needed = download + sum(file["bytes"] for file in wanted.values())
            if needed > free:
                raise UserError(
                    f"{self.name}: not enough room in {storage.home()}: {needed:,} bytes are needed, "
                    f"{free:,} are free.\n  Set {storage.HOME_VARIABLE} to a folder with more."
                )
        logger.warning(
            "Downloading %s from %s: %d files, %s bytes (%d files are here)",
            self.name,
            self.source,
            len(missing),
            f"{download:,}",
            len(wanted) - len(missing),
        )
        for path in missing:
            for _ in range(DOWNLOADS):
                self._get(path)
                if self._is_whole(path, wanted[path]):
                    break
                (self.staging / path).unlink()
                logger.warning("%s arrived damaged", path)
            else:
                raise DamagedError(f"{path} has not the content that {MANIFEST} says")

    def discard(self) -> None:
        """Removes what was downloaded, together with what earlier calls left of other commits."""
        for leftover in self.staging.parent.glob(self.staging.name.replace(self.commit, "*")):
            shutil.rmtree(leftover)

    def _sizes(self, paths: list[str]) -> dict[str, int]:
        found = hub.patiently(
            lambda: self.api.get_paths_info(
                self.source.repo, paths, revision=self.commit, repo_type="dataset"
            ),
            f"Looking at {self.source}",
        )
        return {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}

    def _is_whole(self, path: str, expected: Mapping[str, Any]) -> bool:
        local = self.staging / path
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


def parquet_rows(
    parquet: Path, schema: pa.Schema, batch_rows: int, largest_group: int
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file, a few at a time, cast to a schema.

    Args:
        parquet: The file, from anywhere.
        schema: What it must hold.
        batch_rows: Rows held in memory.
        largest_group: Bytes that a row group may take in memory.

    Raises:
        RowError: It is no Parquet file, a damaged one, of another schema, or takes more memory than that.
    """
    try:
        with pq.ParquetFile(parquet) as file:
            groups = [file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups)]
            if max(groups, default=0) > largest_group:
                raise RowError(f"it would take {max(groups):,} bytes of memory")
            for batch in file.iter_batches(batch_rows):
                yield from table_cast(pa.Table.from_batches([batch]), schema).to_pylist()
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        CastError,
        UnicodeDecodeError,
        OSError,
    ) as error:
        # PyArrow tells damaged pages by an OSError, too; one of the disk has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RowError(next(iter(str(error).splitlines()), type(error).__name__)) from error
