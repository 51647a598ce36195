"""Publishing a corpus: its Parquet shards as they are, one folder a source, with a card and a manifest."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from filelock import FileLock

from datasets_builders import hub, storage
from datasets_builders.corpus import prepare_corpus
from datasets_builders.corpus.catalogue import entry
from datasets_builders.corpus.prepared import full_name
from datasets_builders.corpus.shards import corpus_features
from datasets_builders.corpus.store import SKIPPED_LIST, CorpusManifest, corpus_folder, write_manifest
from datasets_builders.errors import UserError
from datasets_builders.hub_card import DEFAULT_CONFIG, hub_licence
from datasets_builders.hub_corpus_card import corpus_page
from datasets_builders.hub_export import README
from datasets_builders.hub_publish import LocalFile, Parcel, Publication, Pushed, local_file
from datasets_builders.manifest import MANIFEST

logger = logging.getLogger(__name__)

SHARD_PATH = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)/[A-Za-z0-9][A-Za-z0-9_-]*\.parquet")
"""Path of a shard in a repository: the source, and the file."""


def push_corpus(
    name: str,
    repo: str,
    private: bool = False,
    have_rights: bool = False,
    say: Callable[[str], None] = logger.warning,
) -> Pushed:
    """Publishes a corpus that is prepared on this machine as one repository on the Hub.

    Shards go up one by one, from where they lie, and become visible with one commit at the end. Interrupted, the
    same call goes on: what is on the Hub already is not sent again. No image is held in memory.

    Args:
        name: Name of a corpus of the catalogue.
        repo: `ORG/NAME` of the repository; it is created unless it is there.
        private: Create it for members only.
        have_rights: Publish although no licence is known that allows it for every source.
        say: Told the plan, in words, before anything is sent.

    Raises:
        UserError: A licence forbids it, nobody is logged in, the corpus is not prepared or damaged, the repository
            holds something else, or the Hub cannot be reached or refuses.
    """
    title = entry(name)["title"]
    name = full_name(name)
    command = f"python -m datasets_builders push {name} --repo {repo}" + " --private" * private
    hub.check_repo(repo)
    built = prepare_corpus(name).manifest
    licences = {source["name"]: source["licence"] for source in built.sources if source["found"]}
    unfree = {source: licence for source, licence in licences.items() if hub_licence(licence) is None}
    if unfree and not have_rights:
        listed = "".join(f"\n    {source}: {licence!r}" for source, licence in unfree.items())
        raise UserError(
            f"{name} must not be published: these sources have no licence that is known to allow it:{listed}\n"
            f"  If you have the rights to all of them, say so: {command} --i-have-the-rights\n"
            f"  Or build the corpus from a folder without them: "
            f"python -m datasets_builders prepare {name.partition('/')[0]} --raw DIR"
        )
    command += " --i-have-the-rights" * have_rights
    hub.require_login(command)
    folder = storage.home() / "hub" / "push"
    folder.mkdir(parents=True, exist_ok=True)
    key = f"{repo}--{name}".replace("/", "--")
    with (
        FileLock(folder / f".{key}.lock"),
        tempfile.TemporaryDirectory(prefix=f".{key}.", dir=folder) as scratch,
    ):
        files = _files(built, title, repo, Path(scratch))
        stated = ", ".join(dict.fromkeys(licences.values()))
        try:
            return Publication(
                Parcel(name, title, stated, files, Path(scratch)), repo, private, say
            ).publish()
        except UserError:
            raise
        except hub.ERRORS as error:
            again = f"  Nothing half is visible there. To go on, without sending anything twice: {command}"
            raise hub.explain(error, repo, f"publish {name}", again) from error


def _files(built: CorpusManifest, title: str, repo: str, scratch: Path) -> dict[str, LocalFile]:
    """Writes card and manifest into `scratch`; returns all files of the repository by path."""
    folder = corpus_folder(built.name)
    sizes: dict[str, tuple[int, int, int]] = {}
    for shard in built.shards:
        source, rows, size = _describe(folder / shard)
        path = f"{source}/{shard}"
        if not SHARD_PATH.fullmatch(path) or source == DEFAULT_CONFIG:
            raise UserError(
                f"{built.name}: {source!r} cannot be the name of a folder on the Hub.\n"
                "  Use letters, digits, '-' and '_' for its name in the raw folder's sources.yaml; prepare it again."
            )
        sizes[path] = rows, size, built.files[shard]["bytes"]
    shards = list(sizes)
    sources = list(dict.fromkeys(path.partition("/")[0] for path in shards))
    configs = {DEFAULT_CONFIG: sources} | (
        {source: [source] for source in sources} if len(sources) > 1 else {}
    )
    infos = {config: _info(built, config, chosen, sizes) for config, chosen in configs.items()}
    patterns = {config: [f"{source}/*.parquet" for source in chosen] for config, chosen in configs.items()}
    (scratch / README).write_text(corpus_page(built, title, repo, infos, patterns), encoding="utf-8")
    files = {
        path: LocalFile(folder / shard, built.files[shard]["bytes"], built.files[shard]["sha256"])
        for path, shard in zip(shards, built.shards, strict=True)
    }
    files |= {README: local_file(scratch / README), SKIPPED_LIST: local_file(folder / SKIPPED_LIST)}
    described = {path: {"bytes": file.bytes, "sha256": file.sha256} for path, file in files.items()}
    # Paths on this machine are nobody's business.
    write_manifest(scratch, replace(built, files=described, shards=shards, raw=None, hub=None))
    return files | {MANIFEST: local_file(scratch / MANIFEST)}


def _describe(shard: Path) -> tuple[str, int, int]:
    """Returns a shard's source, its number of rows, and the bytes that they take in memory."""
    with pq.ParquetFile(shard) as parquet:
        metadata = parquet.metadata
        source = next(parquet.iter_batches(1, columns=["source"])).column(0)[0].as_py()
        return (
            source,
            metadata.num_rows,
            sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)),
        )


def _info(
    built: CorpusManifest, config: str, sources: list[str], sizes: dict[str, tuple[int, int, int]]
) -> datasets.DatasetInfo:
    taken = [size for path, size in sizes.items() if path.partition("/")[0] in sources]
    images, in_memory, on_disk = (sum(column) for column in zip(*taken, strict=True))
    return datasets.DatasetInfo(
        features=corpus_features(built.categories),
        splits=datasets.splits.SplitDict(
            {"train": datasets.SplitInfo("train", num_bytes=in_memory, num_examples=images)}
        ),
        download_size=on_disk,
        dataset_size=in_memory,
        config_name=config,
    )
