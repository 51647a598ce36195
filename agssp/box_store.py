"""Pseudo boxes on disk: one Parquet file and what it is, written whole and checked when opened."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_folder, canonical_json, content_key

if TYPE_CHECKING:
    import datasets

METADATA, ROWS = "metadata.json", "boxes.parquet"
FORMAT = "agssp-bench/boxes/1"
MAX_IMAGES = 5_000_000
MAX_METADATA_BYTES = 64 * 2**20
MAX_CONTENT_BYTES = 2 * 2**30
_SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "category": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        # Four numbers a box: left, top, width, height.
        "bbox": pa.list_(pa.float32()),
        "score": pa.list_(pa.float32()),
        "area": pa.list_(pa.float32()),
    }
)


class BoxRow(NamedTuple):
    """One image's boxes, best first; most images of some categories have none.

    Attributes:
        image_id: The image's id in its dataset.
        category: Its object category.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        boxes: (n, 4) float32, left, top, width, height in pixels.
        scores: (n,) float32.
        areas: (n,) float32, the number of anomalous pixels.
    """

    image_id: str
    category: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    areas: NDArray[np.float32]


@dataclass(frozen=True)
class CategoryFacts:
    """What was found in the images of one category.

    Attributes:
        threshold: Map values above it are anomalous.
        images: Number of images.
        negatives: Number of images without boxes.
        boxes: Number of boxes.
        flooded: Number of images that lie above the threshold as a whole: their box says nothing.
    """

    threshold: float
    images: int
    negatives: int
    boxes: int
    flooded: int


@dataclass(frozen=True, eq=False)
class Content:
    """The rows as arrays; image i owns boxes `offsets[i]:offsets[i + 1]`."""

    image_ids: list[str]
    categories: list[str]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    areas: NDArray[np.float32]

    def fingerprint(self) -> str:
        """Returns the sha256 of all values, in order."""
        digest = hashlib.sha256(canonical_json([self.image_ids, self.categories]).encode())
        for array in (self.sizes, self.offsets, self.boxes, self.scores, self.areas):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class BoxStore:
    """Pseudo boxes of a set of images, in the order of their maps.

    Attributes:
        folder: Where they are.
        identity: All that they depend on: the maps' fingerprint and the settings.
        origin: The identity of the maps.
        categories: What was found, by category.
        fingerprint: sha256 of the content: equal boxes have equal fingerprints, however they were made.
        content: The boxes themselves.
    """

    folder: Path
    identity: dict[str, Any]
    origin: dict[str, Any]
    categories: dict[str, CategoryFacts]
    fingerprint: str
    content: Content

    def __len__(self) -> int:
        return len(self.content.image_ids)

    def __iter__(self) -> Iterator[BoxRow]:
        content = self.content
        sizes, offsets = content.sizes.tolist(), content.offsets.tolist()
        for i, image_id in enumerate(content.image_ids):
            own = slice(offsets[i], offsets[i + 1])
            width, height = sizes[i]
            boxes, scores, areas = content.boxes[own], content.scores[own], content.areas[own]
            yield BoxRow(image_id, content.categories[i], width, height, boxes, scores, areas)

    def as_detection_dataset(self, images: datasets.Dataset) -> datasets.Dataset:
        """Joins the boxes with their images to a detection dataset of one class.

        Args:
            images: A corpus, a split of a detection dataset, or a part of one: any dataset with columns `image` and
                `image_id`. Where it has `width` and `height` they are compared.

        Returns:
            The images in their order, memory-mapped as they were, with `detection_features(["defect"])` and `score` in
            `objects`. `area` is the number of anomalous pixels. Images without boxes have empty lists; `mask` is None.

        Raises:
            UserError: An image has no maps, two images share an id, or an image's size is not that of its map.
        """
        from agssp.box_dataset import join

        return join(images, self.content, self.folder)


def existing_boxes(folder: Path, identity: Mapping[str, Any]) -> BoxStore | None:
    """Opens the boxes of this identity if they are there, and refuses a folder that holds anything else.

    Raises:
        UserError: There is something else, or boxes that are damaged.
    """
    if not folder.exists():
        return None
    if not (folder / METADATA).is_file():
        raise UserError(f"{folder} exists and holds no boxes: choose another folder with --out.")
    store = open_boxes(folder)
    if content_key(store.identity) != content_key(dict(identity)):
        raise UserError(
            f"{folder} holds boxes of other maps or settings ({canonical_json(store.identity.get('settings'))}): "
            "choose another folder with --out, or remove it first."
        )
    return store


def write_boxes(
    folder: Path,
    identity: Mapping[str, Any],
    thresholds: Mapping[str, float],
    rows: Iterable[BoxRow],
    origin: Mapping[str, Any],
) -> BoxStore:
    """Writes boxes to a folder that appears whole or not at all.

    Args:
        folder: The folder; what is there is replaced.
        identity: All that the boxes depend on, JSON-able.
        thresholds: Every category's threshold.
        rows: One row an image.
        origin: The identity of the maps, JSON-able.

    Raises:
        UserError: The folder cannot be written, or an image occurs twice.
    """
    try:
        content = _collect(rows)
        categories = _count(content, thresholds)
    except ValueError as error:
        raise UserError(
            f"No boxes can be made of these maps: {error}. Make them again: python -m agssp maps."
        ) from error
    metadata = {
        "format": FORMAT,
        "identity": dict(identity),
        "origin": dict(origin),
        "categories": {name: asdict(facts) for name, facts in categories.items()},
        "fingerprint": content.fingerprint(),
    }
    try:
        with atomic_folder(folder) as temporary:
            pq.write_table(_to_table(content), temporary / ROWS, compression="zstd")
            text = json.dumps(metadata | {"checksum": content_key(metadata)}, indent=1, ensure_ascii=False)
            (temporary / METADATA).write_text(text + "\n", encoding="utf-8")
            for name in (ROWS, METADATA):
                with (temporary / name).open("rb") as file:
                    os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"Cannot write {folder}: {error.strerror or error}. Choose another with --out."
        ) from error
    return open_boxes(folder)


def open_boxes(folder: Path) -> BoxStore:
    """Opens stored boxes and checks every value.

    Raises:
        UserError: There are none, they are damaged, or their values are not those of boxes.
    """
    if not (folder / METADATA).is_file():
        raise UserError(
            f"{folder} holds no pseudo boxes. Make them: python -m agssp boxes MAPS --out {folder}"
        )
    try:
        metadata = _read_metadata(folder / METADATA)
        content = _from_table(_read_table(folder / ROWS))
        limits = {name: facts["threshold"] for name, facts in metadata["categories"].items()}
        if content.fingerprint() != metadata["fingerprint"]:
            raise ValueError(f"{ROWS} is not what was written")
        return BoxStore(
            folder,
            metadata["identity"],
            metadata["origin"],
            _count(content, limits),
            metadata["fingerprint"],
            content,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        raise UserError(
            f"The pseudo boxes in {folder} cannot be used: {error}.\n"
            f"  Remove the folder and make them again: python -m agssp boxes MAPS --out {folder}"
        ) from error


def _read_metadata(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise ValueError(f"{METADATA} has more than {MAX_METADATA_BYTES} bytes")
    metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if metadata.pop("checksum") != content_key(metadata):
        raise ValueError(f"the checksum of {METADATA} does not match")
    if metadata["format"] != FORMAT:
        raise ValueError(f"their format is {metadata['format']!r} instead of {FORMAT!r}")
    return metadata


def _read_table(path: Path) -> pa.Table:
    # Footers say how much memory the file needs before anything is read.
    with pq.ParquetFile(path) as file:
        footer = file.metadata
        size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
        if footer.num_rows > MAX_IMAGES or size > MAX_CONTENT_BYTES:
            raise ValueError(f"{ROWS} holds {footer.num_rows} images in {size} bytes, more than is allowed")
        if not file.schema_arrow.equals(_SCHEMA):
            raise ValueError(f"{ROWS} has other columns than boxes have")
        return file.read()


def _collect(rows: Iterable[BoxRow]) -> Content:
    image_ids: list[str] = []
    categories: list[str] = []
    sizes: list[tuple[int, int]] = []
    counts = [0]
    nothing = np.zeros(0, np.float32)
    found: list[tuple[NDArray[np.float32], ...]] = [(nothing.reshape(0, 4), nothing, nothing)]
    for row in rows:
        image_ids.append(row.image_id)
        categories.append(row.category)
        sizes.append((row.width, row.height))
        counts.append(len(row.boxes))
        if len(row.boxes):
            found.append((row.boxes, row.scores, row.areas))
    boxes, scores, areas = (np.concatenate(parts) for parts in zip(*found, strict=True))
    offsets = np.cumsum(counts, dtype=np.int64)
    return _checked(
        Content(
            image_ids, categories, np.array(sizes, np.int32).reshape(-1, 2), offsets, boxes, scores, areas
        )
    )


def _checked(content: Content) -> Content:
    """Returns the content with its arrays made read-only.

    Raises:
        ValueError: An id occurs twice, or a value is none of a box in its image.
    """
    if len(set(content.image_ids)) != len(content.image_ids):
        raise ValueError("an image id occurs twice")
    if (content.sizes < 1).any():
        raise ValueError("an image has no pixels")
    room = np.repeat(content.sizes, np.diff(content.offsets), axis=0)
    boxes = content.boxes
    # Written so that NaN fails.
    fits = (boxes[:, :2] >= 0) & (boxes[:, 2:] > 0) & (boxes[:, :2] + boxes[:, 2:] <= room)
    if not (fits.all() and np.isfinite(content.scores).all()):
        raise ValueError("a box is not inside its image, or its score is not a finite number")
    if not ((content.areas > 0) & (content.areas <= boxes[:, 2] * boxes[:, 3])).all():
        raise ValueError("a box has an area that does not fit it")
    for array in (content.sizes, content.offsets, boxes, content.scores, content.areas):
        array.setflags(write=False)
    return content


def _count(content: Content, thresholds: Mapping[str, float]) -> dict[str, CategoryFacts]:
    names, place = np.unique(np.array(content.categories, dtype=object), return_inverse=True)
    if names.tolist() != sorted(thresholds):
        raise ValueError("the categories of the images are not those of the thresholds")
    counts = np.diff(content.offsets)
    pixels = content.sizes.astype(np.int64).prod(axis=1).astype(np.float32)
    whole = np.repeat(pixels, counts) == content.areas
    flooded = np.bincount(np.repeat(np.arange(len(counts)), counts)[whole], minlength=len(counts))
    return {
        name: CategoryFacts(
            threshold=float(thresholds[name]),
            images=int((place == k).sum()),
            negatives=int((counts[place == k] == 0).sum()),
            boxes=int(counts[place == k].sum()),
            flooded=int(flooded[place == k].sum()),
        )
        for k, name in enumerate(names.tolist())
    }


def _to_table(content: Content) -> pa.Table:
    def lists(values: NDArray[np.float32], each: int) -> pa.Array:
        offsets = pa.array((content.offsets * each).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), pa.float32()))

    columns = [
        pa.array(content.image_ids, pa.string()),
        pa.array(content.categories, pa.string()),
        pa.array(content.sizes[:, 0]),
        pa.array(content.sizes[:, 1]),
        lists(content.boxes, 4),
        lists(content.scores, 1),
        lists(content.areas, 1),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _from_table(table: pa.Table) -> Content:
    table = table.combine_chunks()
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}

    def lists(name: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        lengths = columns[name].value_lengths().to_numpy(zero_copy_only=False)
        values = columns[name].flatten()
        if values.null_count:
            raise ValueError(f"{name} has missing values")
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values.to_numpy().copy()

    if any(column.null_count for column in columns.values()):
        raise ValueError("a column has missing values")
    corners, boxes = lists("bbox")
    offsets, scores = lists("score")
    area_offsets, areas = lists("area")
    if not (np.array_equal(corners, offsets * 4) and np.array_equal(area_offsets, offsets)):
        raise ValueError("boxes, scores and areas differ in number")
    sizes = np.stack([columns["width"].to_numpy(), columns["height"].to_numpy()], axis=1)
    return _checked(
        Content(
            columns["image_id"].to_pylist(),
            columns["category"].to_pylist(),
            sizes,
            offsets,
            boxes.reshape(-1, 4),
            scores,
            areas,
        )
    )
