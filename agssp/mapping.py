"""Making the maps of a dataset: in blocks, by any number of processes, going on where a killed run was.

A run's parts lie in a work folder beside the output, one file for each block of `BLOCK` consecutive images. Every
part appears whole, and names what it was made from. Whoever finds all parts there joins them, under a lock, into a
folder that appears under its final name at once. Blocks and batches depend on the dataset alone, so neither
interruptions nor the number of processes change a byte of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agssp import normals as choosing
from agssp.map_inputs import open_images
from agssp.map_sources import MapSource
from agssp.map_store import MapStore
from agssp.map_work import Work, can_write, existing_maps, join_parts
from agssp.mapper import Mapper, OnProgress, count_blocks, decode_all
from datasets_builders.errors import UserError

VERSION = 1
"""Raised when the same request gives other maps."""


@dataclass(frozen=True)
class Blocks:
    """How other processes make parts of a run: plain data that travels to them; they see the same files.

    Attributes:
        dataset: Name of the dataset or corpus.
        split: Of a detection dataset.
        device: Where its source computes.
        opened: Opens the source again.
        out: Folder of the run.
        identity: What the run depends on.
    """

    dataset: str
    split: str
    device: str
    opened: Callable[[], MapSource]
    out: Path
    identity: dict[str, Any]

    def maker(self) -> Callable[[int], int]:
        """Opens images and source in this process.

        Returns:
            What makes the part of a block; gives the number of its images.
        """
        images, source = open_images(self.dataset, self.split), self.opened()
        source.check(images)
        mapper = Mapper(images, source, Work(self.out), self.identity)

        def make(block: int) -> int:
            mapper.run(range(block, block + 1), lambda done, total: None)
            return len(mapper.rows(block))

        return make


Spread = Callable[[Blocks, Sequence[int], Callable[[int], None]], None]
"""Has other processes make the parts of some blocks; calls the last argument with the images of each that is done."""
_spread: ContextVar[Spread | None] = ContextVar("spread", default=None)


@contextmanager
def spread_by(spread: Spread) -> Iterator[None]:
    """Lets every run of maps in this context be spread over other processes.

    Not a byte of the maps depends on it, if each of them has as many threads as this one.
    """
    before = _spread.set(spread)
    try:
        yield
    finally:
        _spread.reset(before)


def make_maps(
    name: str,
    source: MapSource,
    *,
    out: Path,
    split: str = "train",
    shots: int = 4,
    normals: str = "auto",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> MapStore:
    """Makes the maps of a dataset or corpus, unless they are there; goes on where an interrupted run was.

    Args:
        name: Of the dataset or corpus.
        source: Makes the maps.
        out: Folder to make.
        split: Of a detection dataset.
        shots: Normal samples of each category; 0 for none. Of no effect on sources that need none.
        normals: `auto`, `labelled`, or a file of image ids; see `agssp.normals`.
        seed: Of the choice of normal samples.
        on_progress: Called with the images done, and all.

    Raises:
        UserError: The images or the source cannot be used, or `out` holds something else.
    """
    store = make_shard(
        name, source, out=out, split=split, shots=shots, normals=normals, seed=seed, on_progress=on_progress
    )
    assert store is not None, "there is no other shard to wait for"
    return store


def make_shard(
    name: str,
    source: MapSource,
    *,
    out: Path,
    split: str = "train",
    shots: int = 4,
    normals: str = "auto",
    seed: int = 0,
    num_shards: int = 1,
    shard: int = 0,
    on_progress: OnProgress | None = None,
) -> MapStore | None:
    """Makes one process's share of the maps; the last one to finish joins them.

    Args:
        name: As all others of `make_maps`.
        source: As there.
        out: The same for all processes.
        split: As there.
        shots: As there.
        normals: As there.
        seed: As there.
        num_shards: Number of processes that share the work.
        shard: Which of them this is, from 0.
        on_progress: Called with the images of this share done, and all of this share.

    Returns:
        The maps; None where other processes have not finished theirs.

    Raises:
        UserError: As in `make_maps`.
    """
    if not 0 <= shard < num_shards:
        raise UserError(f"--shard {shard} of --num-shards {num_shards}: shards are counted from 0.")
    if shots < 0:
        raise UserError(f"--shots {shots}: give 0 or more.")
    images = open_images(name, split)
    rule = choosing.Rule(normals)
    source.check(images)
    request: dict[str, Any] = {"version": VERSION, "dataset": images.identity(), "source": source.identity()}
    if source.needs_normals:
        request |= {"shots": shots, "seed": seed, "normals": rule.identity()}
    out = out.expanduser().absolute()
    work = Work(out)
    with can_write(out):
        with work.locked():
            if (ready := existing_maps(out, request)) is not None:
                work.discard()
                return ready
            identity = work.identity(request)
            if identity is None:
                chosen = (
                    choosing.choose(rule, shots, seed, images, source, lambda rows: decode_all(images, rows))
                    if source.needs_normals
                    else {}
                )
                identity = work.begin({"request": request, "normals": chosen})
        mine = range(shard, count_blocks(images), num_shards)
        mapper = Mapper(images, source, work, identity)
        tell = on_progress or (lambda done, total: None)
        spread, missing = _spread.get(), mapper.missing(mine)
        if spread is not None and len(missing) > 1 and source.opened is not None:
            blocks = Blocks(name, split, source.device, source.opened, out, identity)
            _spread_out(spread, blocks, missing, mapper.images_of(mine), mapper.images_of(missing), tell)
        mapper.run(mine, tell)
        parts = [work.part(block) for block in range(count_blocks(images))]
        return join_parts(work, out, parts, images, request, identity)


def _spread_out(
    spread: Spread, blocks: Blocks, missing: Sequence[int], total: int, left: int, tell: OnProgress
) -> None:
    done = total - left
    tell(done, total)

    def count(images: int) -> None:
        nonlocal done
        done += images
        tell(done, total)

    spread(blocks, missing, count)
