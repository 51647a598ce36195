"""What a detector answered on a whole validation split: in memory and as one compressed file.

Metrics are always computed from these float32 arrays, and the file holds exactly the same values, so that
anyone who has the file computes the same metrics to the last bit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

MAX_IMAGES = 50_000
MAX_DETECTIONS = 5_000_000
MAX_CLASSES = 1_000
MAX_NAME_LENGTH = 256
MAX_FILE_BYTES = 256 * 2**20
MAX_COORDINATE = 1e6

_FORMAT = "agssp-bench/detections/1"
_METADATA_KEY = b"agssp_bench"
_CORNERS = ("x1", "y1", "x2", "y2")


class ImageDetections(NamedTuple):
    """One image's detections, as views into the split's arrays.

    Attributes:
        boxes: (n, 4) float32, corners x1, y1, x2, y2 in pixels of the original image.
        scores: (n,) float32 in 0..1.
        labels: (n,) int16, 0-based class.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections on every image of a split, images without any included.

    The order of detections within an image is kept: it decides between equal scores. Arrays are read-only.

    Attributes:
        classes: Class names; a label is a position in it.
        image_ids: Every image of the split, sorted.
        offsets: (images + 1,) int64; image i owns rows `offsets[i]:offsets[i + 1]`.
        boxes: (n, 4) float32, corners x1, y1, x2, y2 in pixels of the original image, x1 <= x2, y1 <= y2.
        scores: (n,) float32 in 0..1.
        labels: (n,) int16 in 0..len(classes) - 1.

    Raises:
        UserError: A value outside these ranges, or more than the module's limits.
    """

    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int16]

    def __post_init__(self) -> None:
        _check_names("class", self.classes, MAX_CLASSES)
        _check_names("image id", self.image_ids, MAX_IMAGES)
        if any(a > b for a, b in itertools.pairwise(self.image_ids)):
            raise UserError("Detections: image ids are not sorted. Build with Detections.from_images.")
        rows = len(self.scores)
        if rows > MAX_DETECTIONS:
            raise UserError(f"Detections: {rows} detections, more than the limit of {MAX_DETECTIONS}.")
        shapes = (self.offsets.shape, self.boxes.shape, self.scores.shape, self.labels.shape)
        if shapes != ((len(self.image_ids) + 1,), (rows, 4), (rows,), (rows,)):
            raise UserError(f"Detections: arrays do not fit together, shapes {shapes}.")
        if self.offsets[0] != 0 or self.offsets[-1] != rows or np.any(np.diff(self.offsets) < 0):
            raise UserError("Detections: offsets do not cover the rows.")
        self._refuse(
            ~(np.abs(self.boxes) <= MAX_COORDINATE).all(axis=1), "a box that is not finite or absurdly far"
        )
        self._refuse(
            (self.boxes[:, 2:] < self.boxes[:, :2]).any(axis=1), "a box with negative width or height"
        )
        self._refuse(~((self.scores >= 0) & (self.scores <= 1)), "a score outside 0..1")
        self._refuse((self.labels < 0) | (self.labels >= len(self.classes)), "a label that is no class")
        for array in (self.offsets, self.boxes, self.scores, self.labels):
            array.setflags(write=False)

    def _refuse(self, bad: ArrayLike, what: str) -> None:
        bad = np.asarray(bad)
        if bad.any():
            image = int(np.searchsorted(self.offsets, int(bad.argmax()), side="right")) - 1
            raise UserError(
                f"Detections: {what} ({int(bad.sum())} in all, first on {self.image_ids[image]!r})."
            )

    @classmethod
    def from_images(
        cls,
        classes: Sequence[str],
        image_ids: Sequence[str],
        boxes: Sequence[ArrayLike],
        scores: Sequence[ArrayLike],
        labels: Sequence[ArrayLike],
    ) -> Detections:
        """Collects one image after the other, in any order of images.

        Args:
            classes: Class names.
            image_ids: One name an image, each once.
            boxes: Per image (n, 4) corners x1, y1, x2, y2 in pixels of the original image; arrays or CPU
                tensors.
            scores: Per image (n,), 0..1.
            labels: Per image (n,), 0-based.

        Returns:
            The detections, images sorted by name, boxes and scores rounded to float32.

        Raises:
            UserError: Lengths that differ, or values out of range.
        """
        if not len(image_ids) == len(boxes) == len(scores) == len(labels):
            raise UserError("Detections: as many boxes, scores and labels entries are needed as images.")
        order = sorted(range(len(image_ids)), key=lambda position: image_ids[position])
        box_parts = [np.asarray(boxes[i], dtype=np.float32).reshape(-1, 4) for i in order]
        score_parts = [np.asarray(scores[i], dtype=np.float32).reshape(-1) for i in order]
        # int64 first: a label such as 65536 must be refused, not wrapped around.
        label_parts = [np.asarray(labels[i], dtype=np.int64).reshape(-1) for i in order]
        for i, box, score, label in zip(order, box_parts, score_parts, label_parts, strict=True):
            if not len(box) == len(score) == len(label):
                raise UserError(f"Detections: boxes, scores and labels of {image_ids[i]!r} differ in number.")
        wide = np.concatenate([np.zeros(0, np.int64), *label_parts])
        if np.any((wide < 0) | (wide >= max(len(classes), 1))):
            raise UserError(f"Detections: a label outside 0..{len(classes) - 1}.")
        return cls(
            classes=tuple(classes),
            image_ids=tuple(image_ids[i] for i in order),
            offsets=np.concatenate([[0], np.cumsum([len(part) for part in score_parts], dtype=np.int64)]),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *box_parts]),
            scores=np.concatenate([np.zeros(0, np.float32), *score_parts]),
            labels=wide.astype(np.int16),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def of_image(self, position: int) -> ImageDetections:
        """Returns the detections of the image at a position of `image_ids`."""
        rows = slice(self.offsets[position], self.offsets[position + 1])
        return ImageDetections(self.boxes[rows], self.scores[rows], self.labels[rows])

    @property
    def image_index(self) -> NDArray[np.int64]:
        """(n,) int64: for every detection, the position of its image in `image_ids`."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.offsets))

    def sha256(self) -> str:
        """Returns the content's hash (64 hexadecimal digits), whatever the compression or library version."""
        header = {"format": _FORMAT, "classes": self.classes, "image_ids": self.image_ids}
        digest = hashlib.sha256(canonical_json(header).encode())
        arrays = ((self.offsets, "<i8"), (self.boxes, "<f4"), (self.scores, "<f4"), (self.labels, "<i2"))
        for array, little_endian in arrays:
            digest.update(np.ascontiguousarray(array, dtype=little_endian).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> str:
        """Writes the detections as Parquet, whole or not at all; equal detections give equal bytes.

        Columns: image (int32, position in the list of image ids), category (int16, 0-based), score, x1, y1,
        x2, y2 (float32). Class names and the full list of image ids are JSON in the file's metadata under
        `agssp_bench`, so that images without detections are there too. Corners and not width and height:
        their float32 values come back exactly.

        Args:
            path: Where to write; an existing file is replaced.

        Returns:
            The content's hash, as `sha256()`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [
            self.image_index.astype(np.int32),
            self.labels,
            self.scores,
            *np.ascontiguousarray(self.boxes.T),
        ]
        header = {"format": _FORMAT, "classes": self.classes, "image_ids": self.image_ids}
        table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=_schema())
        with (
            atomic_file(path) as temporary,
            pq.ParquetWriter(
                temporary,
                table.schema,
                compression="zstd",
                compression_level=9,
                use_dictionary=["image", "category"],
                use_byte_stream_split=["score", *_CORNERS],
                store_schema=False,
            ) as writer,
        ):
            writer.write_table(table, row_group_size=MAX_DETECTIONS)
            writer.add_key_value_metadata({_METADATA_KEY.decode(): canonical_json(header)})
        return self.sha256()

    @classmethod
    def load(cls, path: Path) -> Detections:
        """Reads a file written by `save`; anyone may have written it, so nothing in it is trusted.

        Args:
            path: The Parquet file.

        Returns:
            The detections, values exactly as saved.

        Raises:
            UserError: No such file, too large, not this format, or values out of range; names the file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            raise UserError(f"No detections file {path}. It belongs beside its record: copy both.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than the limit of {MAX_FILE_BYTES // 2**20} MiB for detections.")
        try:
            file = pq.ParquetFile(pa.BufferReader(path.read_bytes()))
            _check_claims(file)
            header = _header(file)
            table = file.read(use_threads=False)
            return cls._from_table(table, header)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (pa.ArrowException, OSError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}: not a readable detections file ({str(error)[:200]}).") from None

    @classmethod
    def _from_table(cls, table: pa.Table, header: dict[str, Any]) -> Detections:
        classes, image_ids = (tuple(header[name]) for name in ("classes", "image_ids"))
        _check_names("class", classes, MAX_CLASSES)
        _check_names("image id", image_ids, MAX_IMAGES)
        if table.num_rows > MAX_DETECTIONS:
            raise UserError(f"{table.num_rows} detections, more than the limit of {MAX_DETECTIONS}.")
        image = table.column("image").to_numpy()
        if np.any((image < 0) | (image >= len(image_ids))):
            raise UserError("detections on an image that is not in the file's own list.")
        if np.any(np.diff(image) < 0):
            raise UserError("rows are not in the order of the images.")
        return cls(
            classes=classes,
            image_ids=image_ids,
            offsets=np.searchsorted(image, np.arange(len(image_ids) + 1)).astype(np.int64),
            boxes=np.stack([table.column(corner).to_numpy() for corner in _CORNERS], axis=1),
            scores=table.column("score").to_numpy().copy(),
            labels=table.column("category").to_numpy().copy(),
        )


def _check_names(kind: str, names: tuple[str, ...], limit: int) -> None:
    if len(names) > limit:
        raise UserError(f"Detections: {len(names)} {kind} entries, more than the limit of {limit}.")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            shown = ascii(str(name)[:60])
            raise UserError(
                f"Detections: a {kind} is not 1 to {MAX_NAME_LENGTH} printable characters: {shown}."
            )
    if len(set(names)) != len(names):
        raise UserError(f"Detections: a {kind} appears twice.")


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"image": pa.int32(), "category": pa.int16()}
    types |= dict.fromkeys(("score", *_CORNERS), pa.float32())
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def _check_claims(file: Any) -> None:
    """Refuses by the footer alone, before anything of its claimed size is read."""
    footer = file.metadata
    if footer.num_rows > MAX_DETECTIONS:
        raise UserError(f"{footer.num_rows} detections, more than the limit of {MAX_DETECTIONS}.")
    if footer.num_row_groups > 1:
        raise UserError("more than one row group.")
    if not _schema().equals(file.schema_arrow):
        raise UserError(f"columns are not {', '.join(_schema().names)}, or not of the right types.")
    # Of the whole group: pyarrow ends the process when asked for a column chunk with inconsistent statistics.
    size = sum(footer.row_group(index).total_byte_size for index in range(footer.num_row_groups))
    if not 0 <= size <= 2 * MAX_FILE_BYTES:
        raise UserError(f"claims {size} bytes of content, more than the limit.")


def _header(file: Any) -> dict[str, Any]:
    text = (file.metadata.metadata or {}).get(_METADATA_KEY, b"")
    try:
        header = json.loads(text)
    except ValueError:  # includes broken Unicode
        raise UserError("no detections of this project: its description is missing or broken.") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise UserError(f"not of the format {_FORMAT}; a newer version of the project may read it.")
    if not all(isinstance(header.get(name), list) for name in ("classes", "image_ids")):
        raise UserError("its description lists no classes and images.")
    return header
