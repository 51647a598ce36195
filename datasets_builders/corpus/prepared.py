"""Preparing and opening corpora on this machine."""

from __future__ import annotations

import logging
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_builders.corpus.catalogue import entry, is_corpus, names
from datasets_builders.corpus.store import (
    CorpusManifest,
    corpus_folder,
    discard_leftover,
    locked,
    open_corpus,
    quick_manifest,
    read_manifest,
    work_folder,
)
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.manifest import DamagedError
from datasets_builders.registry import HubSource

if TYPE_CHECKING:
    import datasets

    from datasets_builders.corpus.builder import Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus on this machine.

    Attributes:
        name: Its full name; that of a procedural corpus has its parameters.
        folder: Folder with the Parquet shards, the manifest and the list of what was skipped.
        manifest: Its manifest.
        built: Whether this call built it, rather than finding it.
        ignored: Entries of the raw folder that are no source of the corpus.
    """

    name: str
    folder: Path
    manifest: CorpusManifest
    built: bool = False
    ignored: tuple[str, ...] = ()


def prepare_corpus(
    name: str,
    raw: Path | str | None = None,
    force: bool = False,
    images: int | None = None,
    categories: int | None = None,
    seed: int | None = None,
    workers: int | None = None,
    hub: str | None = None,
) -> PreparedCorpus:
    """Builds a corpus on this machine, or fetches it from the Hub, unless it is there and nothing has changed.

    It is built where raw files are given or not needed; else what is here counts, then the copy on the Hub that
    `corpora.yaml` pins. What was interrupted goes on where it was when it is asked for again. Scripts that
    call this with several workers need `if __name__ == "__main__":`, since each worker imports them.

    Args:
        name: `corpus`, `corpus_x_sdd_gc10`, `corpus_synthetic` or `corpus_synthetic/nN_kK_sS`.
        raw: Folder with the sources' folders or archives; not for procedural corpora.
        force: Build even if it is there.
        images: Number of images of `corpus_synthetic`.
        categories: Number of categories of `corpus_synthetic`.
        seed: Seed of `corpus_synthetic`.
        workers: Processes; None for as many as there are cores. The result does not depend on it.
        hub: `ORG/NAME@REVISION` of a published copy to fetch instead of building.

    Returns:
        The corpus.

    Raises:
        UserError: The name is unknown, the raw data is missing or refused, the Hub cannot be reached, or the cache
            cannot be written.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: give at least 1.")
    known = entry(name)
    if raw is not None and hub is not None:
        raise UserError("--raw and --hub are two sources of one corpus: give one of them.")
    numbers = (images, categories, seed)
    if "synthetic" in known:
        if raw is not None:
            raise UserError(f"{name} is generated, not read from files: leave out --raw.")
        from datasets_builders.corpus.synthetic import parameters

        name = parameters(name, *numbers).name
    elif any(number is not None for number in numbers):
        raise UserError(f"--images, --categories and --seed are for corpus_synthetic, not for {name}.")
    source = Path(raw).expanduser().resolve() if raw is not None else None
    if hub is not None:
        return _fetch(name, HubSource.parse(hub), force, workers)
    if source is None and "synthetic" not in known:
        found = None if force else _sound(name)
        if found is not None:
            return PreparedCorpus(name, corpus_folder(name), found)
        if "hub" not in known:
            raise not_ready(name)
        return _fetch(name, HubSource(**known["hub"]), force, workers)
    plan, ignored = _plan(name, source)
    if not force and (ready := _up_to_date(name, plan, ignored)):
        if work_folder(name).exists():
            discard_leftover(name)
        return ready
    with locked(name):
        # Another process may have built it while this one waited.
        if not force and (ready := _up_to_date(name, plan, ignored)):
            return ready
        if force and work_folder(name).exists():
            shutil.rmtree(work_folder(name))
        from datasets_builders.corpus import builder

        builder.build(name, plan, work_folder(name), corpus_folder(name), workers, source)
    manifest = read_manifest(name)
    assert manifest is not None, "just written"
    return PreparedCorpus(name, corpus_folder(name), manifest, built=True, ignored=ignored)


def _fetch(name: str, source: HubSource, force: bool, workers: int | None) -> PreparedCorpus:
    """Fetches a corpus from the Hub unless the same is here."""
    from datasets_builders.hub_corpus_fetch import fetch_corpus

    stamp = None
    if "synthetic" in entry(name):
        # Another stamp would be built again by the next command that needs it.
        stamp = _plan(name, None)[0].stamp
    with locked(name):
        found = None if force else _sound(name)
        fetched = fetch_corpus(name, source, found, stamp, workers)
    manifest = fetched or found
    assert manifest is not None, "None is returned for a corpus that is here"
    return PreparedCorpus(name, corpus_folder(name), manifest, built=fetched is not None)


def _up_to_date(name: str, plan: Plan, ignored: tuple[str, ...]) -> PreparedCorpus | None:
    found = _sound(name)
    if found is None or found.stamp != plan.stamp:
        return None
    return PreparedCorpus(name, corpus_folder(name), found, ignored=ignored)


def _plan(name: str, raw: Path | None) -> tuple[Plan, tuple[str, ...]]:
    if raw is None:
        from datasets_builders.corpus.synthetic import SyntheticPlan, parameters

        return SyntheticPlan(parameters(name)), ()
    from datasets_builders.corpus import sources_on_disk

    plan = sources_on_disk.plan(name, entry(name), raw, work_folder(name) / "unpacked")
    return plan, tuple(plan.ignored)


def _sound(name: str) -> CorpusManifest | None:
    """Returns the manifest of a corpus that is whole and of this version; says why where it is not."""
    from datasets_builders.corpus.shards import VERSION

    try:
        manifest = read_manifest(name)
    except DamagedError as error:
        logger.warning("%s is damaged and must be built again: %s", name, error)
        return None
    if manifest is not None and manifest.version != VERSION:
        logger.warning("%s was built by another version and must be built again", name)
        return None
    return manifest


def not_ready(name: str) -> UserError:
    """Returns the error for a corpus that is not on this machine."""
    return UserError(
        f"{name} is not ready on this machine; it is built from files of its owners.\n"
        f"  Where to get them: docs/corpus.md\n"
        f"  then: python -m datasets_builders prepare {name} --raw DIR"
    )


def full_name(name: str) -> str:
    """Returns the name under which a corpus is stored: `corpus_synthetic` has its parameters added.

    Raises:
        UserError: There is no such corpus.
    """
    if not is_corpus(name) and quick_manifest(name) is not None:
        return name  # Derived from another corpus and stored under a name of the user's.
    if "synthetic" not in entry(name):
        return name
    from datasets_builders.corpus.synthetic import parameters

    return parameters(name).name


def is_ready(name: str) -> bool:
    """Tells whether a corpus is there, from its manifest and the sizes of its files."""
    return quick_manifest(full_name(name)) is not None


def load_corpus(name: str, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """Opens a corpus; a procedural one is built on first use.

    Args:
        name: Name of a corpus.
        streaming: False: a memory-mapped `Dataset` (a second copy on disk is made on first use). True: an
            `IterableDataset` that reads the Parquet shards from start to end.

    Returns:
        Rows in the corpus's order: `image`, `image_id`, `category`, `source`, `licence`.

    Raises:
        UserError: The name is unknown, or the corpus must be prepared first.
    """
    manifest = _ready_manifest(name)
    try:
        return open_corpus(manifest, streaming)
    except DamagedError as error:
        source = "" if manifest.raw is None else f" --raw {shlex.quote(manifest.raw)}"
        raise UserError(
            f"{manifest.name} is damaged: {error}\n"
            f"  Build it again: python -m datasets_builders prepare {manifest.name} --force{source}"
        ) from error


def fingerprint(name: str) -> str:
    """Returns the sha256 of a corpus's content: categories, and each row's id, category and image, in order.

    The same on every machine, whatever the shards, processes, paths and times of its build.
    """
    return _ready_manifest(name).fingerprint


def _ready_manifest(name: str) -> CorpusManifest:
    name = full_name(name)
    if not is_corpus(name):
        manifest = quick_manifest(name)
        if manifest is None:
            raise unknown_name("corpus", name, names(), "python -m datasets_builders list")
        return manifest
    return prepare_corpus(name).manifest
