"""Building a corpus: shard by shard, by several processes, going on where a killed build was."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datasets_builders.corpus.shards import (
    VERSION,
    Job,
    corpus_fingerprint,
    data_folder,
    is_made,
    make_shard,
    part_path,
    read_part,
)
from datasets_builders.corpus.store import SKIPPED_LIST, CorpusManifest, write_manifest
from datasets_builders.errors import UserError
from datasets_builders.machine import cores
from datasets_builders.storage import atomic_file

RETIRED = "retired"


class Plan(Protocol):
    """What a corpus consists of: its categories, its shards, and a stamp of all that they depend on."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories in index order."""

    @property
    def stamp(self) -> str:
        """Hash that changes when a shard would."""

    @property
    def total(self) -> int | None:
        """Number of images to look at, where known beforehand."""

    def expected(self) -> list[dict[str, Any]]:
        """Facts of each source: `name`, `present`, `expected`, `expected_by_category`, ..."""

    def jobs(self) -> Iterator[Job]:
        """Yields the shards in the order of the corpus."""


def build(
    name: str,
    plan: Plan,
    work: Path,
    folder: Path,
    workers: int | None,
    raw: Path | None,
    finish: Callable[[CorpusManifest, Path], CorpusManifest] | None = None,
) -> Path:
    """Builds a corpus; a build that was killed goes on from the shards that it had finished.

    Args:
        name: Name of the corpus.
        plan: Its shards.
        work: Folder of the build, kept when it is interrupted.
        folder: Where the corpus appears, whole, in the end; what is there is replaced.
        workers: Processes; None for as many as there are cores, never more than that.
        raw: The raw folder, for the manifest.
        finish: Called with the manifest and the folder of the finished shards before the corpus appears: returns
            the manifest to write, or raises to refuse what was made.

    Returns:
        `folder`.

    Raises:
        UserError: A worker was killed, or the disk is full.
    """
    count = max(1, min(workers or cores(), cores()))
    for part in (data_folder(work), part_path(work, "x").parent):
        part.mkdir(parents=True, exist_ok=True)
        for leftover in part.glob(".*.tmp"):
            leftover.unlink()
    if folder.exists() and (work / RETIRED).exists():
        shutil.rmtree(work / RETIRED)
    try:
        with _progress(name, plan.total) as advance:
            made = _make_all(plan.jobs(), work, count, advance)
    except BrokenProcessPool as error:
        raise UserError(
            f"{name}: a process of the build was killed, most likely for want of memory.\n"
            f"  What was finished is kept: the same command goes on; give --workers 1 to need less memory."
        ) from error
    manifest = _manifest(name, plan, made, work, raw)
    _appear(finish(manifest, data_folder(work)) if finish else manifest, work, folder)
    return folder


def _make_all(jobs: Iterator[Job], work: Path, workers: int, advance: Callable[[int], None]) -> list[str]:
    """Makes every shard that is not there yet; returns the names of all in order."""
    names: list[str] = []
    missing = _missing(jobs, work, names, advance)
    if workers == 1:
        for job in missing:
            make_shard(job, work)
            advance(job.size)
        return names
    # A fresh interpreter for each worker: a forked one would share the locks and threads of this one.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    pending: dict[Future[Any], int] = {}
    try:
        for job in missing:
            if len(pending) >= 2 * workers:
                _collect(pending, advance)
            pending[pool.submit(make_shard, job, work)] = job.size
        while pending:
            _collect(pending, advance)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return names


def _missing(
    jobs: Iterator[Job], work: Path, names: list[str], advance: Callable[[int], None]
) -> Iterator[Job]:
    for job in jobs:
        names.append(job.name)
        if is_made(job, work):
            advance(job.size)
        else:
            yield job


def _collect(pending: dict[Future[Any], int], advance: Callable[[int], None]) -> None:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        size = pending.pop(future)
        future.result()
        advance(size)


def _end_with_parent() -> None:
    """Makes a worker end when its parent is killed: it would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            connection.wait([sentinel])
            os._exit(1)

        Thread(target=watch, daemon=True).start()


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows a bar of the images done; gives the function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task(f"Building {name}", total=total)
        yield lambda count: bar.advance(task, count)


def _manifest(name: str, plan: Plan, made: list[str], work: Path, raw: Path | None) -> CorpusManifest:
    """Counts what was made, and writes the list of what was skipped."""
    data = data_folder(work)
    files: dict[str, dict[str, Any]] = {}
    shards: list[str] = []
    found: dict[str, Counter[str]] = {}
    skipped: dict[str, Counter[str]] = {}

    def digests() -> Iterator[str]:
        for job_name in made:
            yield from read_part(work, job_name).digests

    with atomic_file(data / SKIPPED_LIST) as temporary, temporary.open("w", encoding="utf-8") as log:
        for job_name in made:
            part = read_part(work, job_name)
            found.setdefault(part.source, Counter()).update(part.counts)
            for what, why in part.skipped:
                skipped.setdefault(part.source, Counter())[why] += 1
                log.write(f"{part.source}/{what}\t{why}\n".replace("\r", "\\r"))
            if part.file:
                shards.append(part.file)
                files[part.file] = {"bytes": part.bytes, "sha256": part.sha256}
    sources = []
    for facts in plan.expected():
        counts = found.get(facts["name"], Counter())
        sources.append(
            facts
            | {
                "found": counts.total(),
                "found_by_category": dict(counts),
                "skipped": skipped.get(facts["name"], Counter()).total(),
                "skipped_reasons": dict(skipped.get(facts["name"], Counter())),
            }
        )
    images = sum(source["found"] for source in sources)
    if not images:
        reasons = "; ".join(
            f"{why}: {n}" for counter in skipped.values() for why, n in counter.most_common(3)
        )
        raise UserError(f"{name}: not one image could be read in {raw} ({reasons or 'no images'}).")
    return CorpusManifest(
        name=name,
        version=VERSION,
        stamp=plan.stamp,
        categories=list(plan.categories),
        images=images,
        fingerprint=corpus_fingerprint(plan.categories, digests()),
        files=files,
        shards=shards,
        sources=sources,
        raw=str(raw) if raw else None,
    )


def _appear(manifest: CorpusManifest, work: Path, folder: Path) -> None:
    """Writes the manifest and moves the whole to its place."""
    data = data_folder(work)
    for path in data.iterdir():
        if path.name not in manifest.files and path.name != SKIPPED_LIST:
            path.unlink()
    write_manifest(data, manifest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(work / RETIRED)
    data.rename(folder)
    shutil.rmtree(work)
