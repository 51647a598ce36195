"""Pseudo boxes joined with their images: a detection dataset that copies no image."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable
from numpy.typing import NDArray

from agssp.box_store import Content
from datasets_builders.errors import UserError
from datasets_builders.schema import detection_features

# The one class of pseudo boxes.
CLASSES = ("defect",)


def features() -> datasets.Features:
    """Returns the features of pseudo boxes: a detection dataset of one class, whose objects have scores."""
    found = detection_features(CLASSES)
    found["objects"]["score"] = datasets.List(datasets.Value("float32"))
    return found


def join(images: datasets.Dataset, content: Content, folder: Path) -> datasets.Dataset:
    """Joins images and boxes by image id; see `BoxStore.as_detection_dataset`.

    Args:
        images: Dataset with `image` and `image_id`, with or without a selection of rows.
        content: The boxes.
        folder: Where the boxes are, for errors.
    """
    if not {"image", "image_id"} <= set(images.column_names):
        raise UserError(f"Boxes need images with columns image and image_id, not {images.column_names}.")
    # A dataset with selected rows would be copied to have columns added; the whole table below it is not.
    stored_ids = images.data.column("image_id").to_pylist()
    place = {image_id: i for i, image_id in enumerate(stored_ids)}
    if len(place) != len(stored_ids):
        raise UserError(
            f"{len(stored_ids) - len(place)} image ids occur more than once: boxes cannot be matched."
        )
    chosen_ids = images.with_format(None)["image_id"][:]
    row_of = {image_id: row for row, image_id in enumerate(content.image_ids)}
    missing = [image_id for image_id in chosen_ids if image_id not in row_of]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(chosen_ids)} images are not among the boxes of {folder} "
            f"(first: {missing[0]!r}): make maps and boxes of these images."
        )
    selection = [place[image_id] for image_id in chosen_ids]
    rows = np.array([row_of.get(image_id, -1) for image_id in stored_ids], np.int64)
    _check_sizes(images.data, content, rows, np.array(selection, np.int64))
    base = datasets.Dataset(images.data, info=images.info.copy(), fingerprint=images._fingerprint)
    base = base.select_columns("image").cast_column("image", features()["image"])
    joined = datasets.concatenate_datasets([base, _annotations(stored_ids, content, rows)], axis=1)
    return joined if selection == list(range(len(stored_ids))) else joined.select(selection)


def _check_sizes(
    stored: datasets.table.Table, content: Content, rows: NDArray[np.int64], chosen: NDArray[np.int64]
) -> None:
    if not {"width", "height"} <= set(stored.column_names):
        return
    sizes = np.stack([stored.column(name).to_numpy() for name in ("width", "height")], axis=1)
    wrong = np.flatnonzero((sizes[chosen] != content.sizes[rows[chosen]]).any(axis=1))
    if len(wrong):
        row = rows[chosen[wrong[0]]]
        raise UserError(
            f"{len(wrong)} images have another size than when their maps were made (first: "
            f"{content.image_ids[row]!r}, then {' x '.join(map(str, content.sizes[row]))}): make the maps again."
        )


def _annotations(image_ids: list[str], content: Content, rows: NDArray[np.int64]) -> datasets.Dataset:
    """Returns every column but the image, for these images; `rows` is -1 where an image has no boxes here."""
    known = rows >= 0
    counts = np.where(known, np.diff(content.offsets)[rows], 0) if len(content.sizes) else 0 * rows
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    taken = np.repeat(content.offsets[:-1][rows] - (ends - counts), counts) + np.arange(total)
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32))

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    objects = {
        # Ids count from 1: COCO's tools take an object of id 0 for none.
        "id": lists(pa.array(np.arange(1, total + 1))),
        "bbox": lists(pa.FixedSizeListArray.from_arrays(pa.array(content.boxes[taken].ravel()), 4)),
        "area": lists(pa.array(content.areas[taken])),
        "category": lists(pa.array(np.zeros(total, np.int64))),
        "score": lists(pa.array(content.scores[taken])),
    }
    wanted = features()
    del wanted["image"]
    schema = wanted.arrow_schema
    order = [field.name for field in schema.field("objects").type]
    sizes = np.where(known[:, None], content.sizes[rows], 0).astype(np.int32)
    columns = {
        "image_id": pa.array(image_ids, pa.string()),
        "width": pa.array(sizes[:, 0]),
        "height": pa.array(sizes[:, 1]),
        "objects": pa.StructArray.from_arrays([objects[name] for name in order], names=order),
        "mask": pa.nulls(len(image_ids), schema.field("mask").type),
    }
    table = pa.Table.from_arrays(
        [columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema
    )
    return datasets.Dataset(InMemoryTable(table), info=datasets.DatasetInfo(features=wanted))
