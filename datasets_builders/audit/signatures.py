"""What an audit keeps of every image: a hash of its pixels, its size, and the squashed picture.

Signatures lie on disk and are memory-mapped, so that memory does not grow with the number of images; they are
kept under the fingerprint of what they are of, and a second audit of the same images does not decode them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from datasets_builders.audit.descriptors import THUMB, squash
from datasets_builders.audit.pictures import Collection, grey
from datasets_builders.storage import atomic_folder, content_key, home

VERSION = 1
"""Raised when the same pixels give another signature."""
BATCH = 64


@dataclass(frozen=True)
class Signatures:
    """Signatures of a collection, in the order of its rows, memory-mapped.

    Attributes:
        hashes: uint8 (images, 32): sha256 of size and decoded pixels.
        sizes: int32 (images, 2): height, width.
        thumbs: uint16 (images, THUMB, THUMB), see `descriptors.squash`.
    """

    hashes: np.ndarray
    sizes: np.ndarray
    thumbs: np.ndarray


def pixel_hash(pixels: np.ndarray) -> bytes:
    """Returns the sha256 (32 bytes) of an image's size and decoded pixels, uint8 (height, width, 3)."""
    digest = hashlib.sha256(f"{pixels.shape}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def signatures_folder(collection: Collection) -> Path:
    """Returns where the signatures of a collection are kept."""
    return home() / "audit" / content_key([VERSION, collection.fingerprint])


def signatures(collection: Collection, workers: int = 1) -> Signatures:
    """Returns the signatures of a collection; they are computed unless they are there.

    Args:
        collection: The images.
        workers: Processes that decode.
    """
    folder = signatures_folder(collection)
    if not folder.exists():
        with atomic_folder(folder) as target:
            _compute(collection, target, workers)
    hashes, sizes, thumbs = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("hashes", "sizes", "thumbs")
    )
    return Signatures(hashes, sizes, thumbs)


def _compute(collection: Collection, folder: Path, workers: int) -> None:
    count = len(collection)
    layout = {
        "hashes": (np.uint8, (count, 32)),
        "sizes": (np.int32, (count, 2)),
        "thumbs": (np.uint16, (count, THUMB, THUMB)),
    }
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (dtype, shape) in layout.items()
    }
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"Reading {collection.name}", total=count)
        for start, values in _batches(collection, workers):
            end = start + len(values["sizes"])
            for name, value in values.items():
                files[name][start:end] = value
            bar.advance(task, end - start)
    for array in files.values():
        array.flush()


_opened: Collection | None = None


def _open(collection: Collection) -> None:
    """Gives a worker its collection; memory-mapped files travel by their paths."""
    global _opened
    _opened = collection


def _in_worker(start: int) -> tuple[int, dict[str, np.ndarray]]:
    assert _opened is not None
    return _batch(_opened, start)


def _batch(collection: Collection, start: int) -> tuple[int, dict[str, np.ndarray]]:
    hashes, sizes, thumbs = [], [], []
    for row in range(start, min(start + BATCH, len(collection))):
        pixels = collection.pixels(row)
        hashes.append(np.frombuffer(pixel_hash(pixels), np.uint8))
        sizes.append(pixels.shape[:2])
        thumbs.append(squash(grey(pixels)))
    return start, {"hashes": np.stack(hashes), "sizes": np.array(sizes), "thumbs": np.stack(thumbs)}


def _batches(collection: Collection, workers: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    starts = iter(range(0, len(collection), BATCH))
    if workers == 1 or len(collection) <= 8 * BATCH:
        for start in starts:
            yield _batch(collection, start)
        return
    # A fresh interpreter for each worker: a forked one would share the locks and threads of this one.
    with ProcessPoolExecutor(workers, get_context("spawn"), _open, (collection,)) as pool:
        waiting = [pool.submit(_in_worker, start) for start in islice(starts, 4 * workers)]
        while waiting:
            done = waiting.pop(0)
            waiting += [pool.submit(_in_worker, start) for start in islice(starts, 1)]
            yield done.result()
