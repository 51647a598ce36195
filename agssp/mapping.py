"""Making the maps of a dataset: in blocks, by any number of processes, going on where a killed run was.

A run's parts lie in a work folder beside the output, one file for each block of `BLOCK` consecutive images. Every
part appears whole, and names what it was made from. Whoever finds all parts there joins them, under a lock, into a
folder that appears under its final name at once. Blocks and batches depend on the dataset alone, so neither
interruptions nor the number of processes change a byte of the result.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agssp import normals as choosing
from agssp.map_inputs import EncodedImage, Images, MapInput, open_images
from agssp.map_sources import MapSource
from agssp.map_store import METADATA, MapRow, MapStore, open_maps, read_part, write_part, write_store
from datasets_builders.errors import UserError
from datasets_builders.machine import cores
from datasets_builders.storage import atomic_file, atomic_folder, canonical_json, content_key

VERSION = 1
"""Raised when the same request gives other maps."""
BLOCK = 64
"""Images in a part: what a killed run loses at most."""
_AHEAD = 2
"""Batches that are read, and on a GPU decoded, before it is their turn."""

OnProgress = Callable[[int, int], None]


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
        mapper = _Mapper(images, source, _Work(self.out), self.identity)

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
    work = _Work(out)
    with _can_write(out):
        with work.locked():
            if (ready := _existing(out, request)) is not None:
                work.discard()
                return ready
            identity = work.identity(request)
            if identity is None:
                chosen = (
                    choosing.choose(rule, shots, seed, images, source, lambda rows: _decode_all(images, rows))
                    if source.needs_normals
                    else {}
                )
                identity = work.begin({"request": request, "normals": chosen})
        mine = range(shard, _count_blocks(images), num_shards)
        mapper = _Mapper(images, source, work, identity)
        tell = on_progress or (lambda done, total: None)
        spread, missing = _spread.get(), mapper.missing(mine)
        if spread is not None and len(missing) > 1 and source.opened is not None:
            blocks = Blocks(name, split, source.device, source.opened, out, identity)
            _spread_out(spread, blocks, missing, mapper.images_of(mine), mapper.images_of(missing), tell)
        mapper.run(mine, tell)
        return _join(work, out, images, request, identity)


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


@contextmanager
def _can_write(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and not Path(error.filename).is_relative_to(out.parent):
            raise UserError(f"Cannot read {error.filename}: {error.strerror or error}.") from error
        raise UserError(
            f"Cannot write to {out.parent}: {error.strerror or error}. Choose another --out."
        ) from error


def _existing(out: Path, request: dict[str, Any]) -> MapStore | None:
    """Returns the maps that are there already.

    Raises:
        UserError: Something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / METADATA).is_file():
        raise UserError(f"{out} exists and holds no anomaly maps. Choose another --out.")
    store = open_maps(out)
    _require_same(store.request, request, f"{out} holds other maps")
    return store


def _require_same(found: dict[str, Any], request: dict[str, Any], what: str) -> None:
    if canonical_json(found) == canonical_json(request):
        return
    there, here = _flat(found), _flat(request)
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    lines = [f"    {key}: {there.get(key, '-')} there, {here.get(key, '-')} now" for key in keys]
    raise UserError(f"{what}, which are never overwritten. They differ in\n" + "\n".join(lines) +
                    "\n  Choose another --out, or remove what is there.")  # fmt: skip


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {key: item for name in value for key, item in _flat(value[name], f"{prefix}{name}.").items()}


def _count_blocks(images: Images) -> int:
    return -(-len(images.ids) // BLOCK)


class _Work:
    """The work folder of a run: what is made, `identity.json`, and `parts/`."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.folder = out.with_name(f".{out.name}.work")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one process at a time begin or end the run."""
        from filelock import FileLock

        self._out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._out.with_name(f".{self._out.name}.lock")):
            yield

    def identity(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what the run that was begun here depends on; None where none has made anything.

        Raises:
            UserError: It was another run.
        """
        path = self.folder / "identity.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if found["request"] != request and not any(self.part(0).parent.glob("*.parquet")):
                return None  # It had not made anything yet.
            _require_same(found["request"], request, f"{self.folder} holds the unfinished run of other maps")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}). Remove {self.folder} and begin again.") from error
        return found

    def begin(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Notes what the run depends on."""
        with atomic_file(self.folder / "identity.json") as temporary:
            temporary.write_text(json.dumps(identity, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return identity

    def part(self, block: int) -> Path:
        """Returns where the maps of a block are, or will be."""
        return self.folder / "parts" / f"{block:06d}.parquet"

    def discard(self) -> None:
        """Removes the folder, where it is still there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _join(
    work: _Work, out: Path, images: Images, request: dict[str, Any], identity: dict[str, Any]
) -> MapStore | None:
    """Joins all parts, if they are there, into the output."""
    with work.locked():
        # Another process may have joined them.
        if (ready := _existing(out, request)) is None:
            parts = [work.part(block) for block in range(_count_blocks(images))]
            if not all(part.is_file() for part in parts):
                return None
            _remove_leftovers(out)
            key = content_key(identity)
            if out.exists():
                out.rmdir()
            with atomic_folder(out) as folder:
                tables = (_required_part(part, key) for part in parts)
                write_store(folder, tables, len(images.ids), images.split, identity)
            ready = open_maps(out)
        work.discard()
    return ready


def _remove_leftovers(out: Path) -> None:
    """Removes what runs left that were killed while they joined; not those of a neighbour such as `NAME.v2`."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.\d+-[0-9a-f]+\.tmp")
    for path in out.parent.iterdir():
        if ours.fullmatch(path.name):
            shutil.rmtree(path)


def _required_part(path: Path, key: str) -> Any:
    table = read_part(path, key)
    if table is None:
        raise UserError(f"{path} is damaged, or of another run. Remove it and give the same command again.")
    return table


@dataclass(frozen=True)
class _Batch:
    """Images of one category in a block, by their rows."""

    block: int
    category: str
    rows: tuple[int, ...]


class _Mapper:
    """Makes parts; reading, decoding, computing and writing go on side by side.

    On a GPU images are decoded while it computes. On a CPU computing takes every core, so the next batch is read, but
    not decoded, meanwhile: decoding then takes every core in its turn. Threads at work never exceed the cores.
    """

    def __init__(self, images: Images, source: MapSource, work: _Work, identity: dict[str, Any]) -> None:
        self._images = images
        self._source = source
        self._work = work
        self._key = content_key(identity)
        self._normals: dict[str, list[str]] = identity["normals"]
        self._models: dict[str, Any] = {}
        self._places = {image_id: row for row, image_id in enumerate(images.ids)}
        self._reading = threading.Lock()

    def run(self, blocks: range, on_progress: OnProgress) -> None:
        """Makes the parts of some blocks that are not there yet."""
        missing, total = self.missing(blocks), self.images_of(blocks)
        done = total - self.images_of(missing)
        on_progress(done, total)
        rows: dict[int, MapRow] = {}
        writes: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as writer:
            for batch, inputs in self._decoded(
                [batch for block in missing for batch in self._batches(block)]
            ):
                rows |= self._score(batch, inputs)
                done += len(inputs)
                on_progress(done, total)
                if len(rows) == len(self.rows(batch.block)):
                    ordered = [rows[row] for row in sorted(rows)]
                    writes.append(writer.submit(write_part, self._work.part(batch.block), ordered, self._key))
                    rows = {}
                while len(writes) > 2:
                    writes.popleft().result()
            while writes:
                writes.popleft().result()

    def missing(self, blocks: Iterable[int]) -> list[int]:
        """Returns those of some blocks whose parts are not there."""
        return [block for block in blocks if read_part(self._work.part(block), self._key) is None]

    def images_of(self, blocks: Iterable[int]) -> int:
        """Returns the number of images in some blocks."""
        return sum(len(self.rows(block)) for block in blocks)

    def rows(self, block: int) -> range:
        """Returns the places of a block's images in the dataset."""
        return range(block * BLOCK, min((block + 1) * BLOCK, len(self._images.ids)))

    def _batches(self, block: int) -> list[_Batch]:
        """Returns the images of a block, those of one category together."""
        groups: dict[str, list[int]] = {}
        for row in self.rows(block):
            groups.setdefault(self._images.categories[row], []).append(row)
        size = self._source.batch_size
        return [
            _Batch(block, category, tuple(rows[start : start + size]))
            for category, rows in groups.items()
            for start in range(0, len(rows), size)
        ]

    def _decoded(self, batches: Sequence[_Batch]) -> Iterator[tuple[_Batch, list[MapInput]]]:
        """Yields batches with their images; the next ones are on their way meanwhile."""
        on_gpu = self._source.device != "cpu"
        ahead: deque[tuple[_Batch, Future[list[Any]]]] = deque()
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(cores()) as decoders:

            def read(batch: _Batch) -> list[Any]:
                found = self._read(batch.rows)
                return [decoders.submit(self._decode, one) for one in found] if on_gpu else found

            for batch in [*batches, *[None] * _AHEAD]:
                if batch is not None:
                    ahead.append((batch, reader.submit(read, batch)))
                if ahead and (batch is None or len(ahead) > _AHEAD):
                    first, found = ahead.popleft()
                    if on_gpu:
                        yield first, [future.result() for future in found.result()]
                    else:
                        yield first, list(decoders.map(self._decode, found.result()))

    def _read(self, rows: Sequence[int]) -> list[EncodedImage]:
        with self._reading:
            return self._images.read(rows)

    def _decode(self, image: EncodedImage) -> MapInput:
        return image.decode(self._images.mask(image) if self._source.needs_masks else None)

    def _score(self, batch: _Batch, inputs: list[MapInput]) -> dict[int, MapRow]:
        found = self._source.score(inputs, self._model(batch.category))
        if not len(found.maps) == len(found.image_scores) == len(inputs):
            raise UserError(
                f"{self._source.name} gave {len(found.maps)} maps and {len(found.image_scores)} scores of "
                f"{len(inputs)} images, such as {inputs[0].image_id!r}. A source gives one of each for every image."
            )
        if not (np.isfinite(found.maps).all() and np.isfinite(found.image_scores).all()):
            raise UserError(
                f"{self._source.name} gave maps with values that are not finite, for images such as "
                f"{inputs[0].image_id!r}. Try --precision fp32."
            )
        return {
            row: MapRow(
                one.image_id, one.category, one.image.shape[1], one.image.shape[0], float(score), values
            )
            for row, one, values, score in zip(
                batch.rows, inputs, found.maps, found.image_scores, strict=True
            )
        }

    def _model(self, category: str) -> Any:
        if category not in self._models:
            rows = [self._places[image_id] for image_id in self._normals.get(category, [])]
            samples = [self._read([row])[0].decode().image for row in rows]
            self._models[category] = self._source.fit(category, samples)
        return self._models[category]


def _decode_all(images: Images, rows: Sequence[int]) -> list[MapInput]:
    return [images.read([row])[0].decode() for row in rows]
