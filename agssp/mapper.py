"""Makes the parts of a run of maps; reading, decoding, computing and writing go on side by side."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from agssp.map_inputs import EncodedImage, Images, MapInput
from agssp.map_sources import MapSource
from agssp.map_store import MapRow, read_part, write_part
from agssp.map_work import Work
from datasets_builders.errors import UserError
from datasets_builders.machine import cores
from datasets_builders.storage import content_key

BLOCK = 64
"""Images in a part: what a killed run loses at most."""
_AHEAD = 2
"""Batches that are read, and on a GPU decoded, before it is their turn."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Batch:
    """Images of one category in a block, by their rows."""

    block: int
    category: str
    rows: tuple[int, ...]


class Mapper:
    """Makes parts.

    On a GPU images are decoded while it computes. On a CPU computing takes every core, so the next batch is read, but
    not decoded, meanwhile: decoding then takes every core in its turn. Threads at work never exceed the cores.
    """

    def __init__(self, images: Images, source: MapSource, work: Work, identity: dict[str, Any]) -> None:
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


def count_blocks(images: Images) -> int:
    """Returns the number of parts."""
    return -(-len(images.ids) // BLOCK)


def decode_all(images: Images, rows: Sequence[int]) -> list[MapInput]:
    """Returns some of the images, as arrays."""
    return [images.read([row])[0].decode() for row in rows]
