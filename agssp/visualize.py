"""Anomaly maps, masks and pseudo boxes beside their images, and sources of maps beside each other (Fig. 5)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np

from agssp.box_store import BoxStore, open_boxes
from agssp.map_inputs import Images, open_images
from agssp.map_sheet import Example, sheet
from agssp.map_store import MapStore, open_maps
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file


def draw(
    folders: Sequence[Path],
    boxes_folder: Path | None,
    dataset: str | None,
    split: str | None,
    ids: Sequence[str],
    number: int,
    seed: int,
    out: Path,
) -> list[str]:
    """Writes a sheet as PNG.

    Args:
        folders: Of the maps, one a source; each gives its folder's name to its column.
        boxes_folder: Of boxes that were made from the first maps; None for none.
        dataset: Dataset or corpus of the images; None for the one that the first maps record.
        split: Its split; None for the recorded one.
        ids: Images to draw, in this order; if empty, `number` random ones in the order of the maps.
        number: How many.
        seed: Chooses them.
        out: The PNG file.

    Returns:
        The ids of the images that were drawn.

    Raises:
        UserError: As `collect`, or the file cannot be written.
    """
    maps = [open_maps(folder) for folder in folders]
    boxes = None if boxes_folder is None else open_boxes(boxes_folder)
    recorded = maps[0].request["dataset"]
    images = open_images(dataset or recorded["name"], split or recorded["split"])
    chosen = list(ids)
    if not chosen:
        every = [row.image_id for row in maps[0]]
        rng = np.random.default_rng(seed)
        chosen = [every[k] for k in sorted(rng.permutation(len(every))[:number].tolist())]
    names = [folder.resolve().name for folder in folders]
    title = f"{images.name}, {images.split}" + (
        "" if boxes is None else f"  ·  boxes: {boxes.folder.resolve().name}"
    )
    page = sheet(collect(maps, images, chosen, boxes), names, title)
    try:
        with atomic_file(out) as temporary:
            page.save(temporary, format="PNG")
    except OSError as error:
        raise UserError(
            f"Cannot write {out}: {error.strerror or error}. Choose another with --out."
        ) from error
    return chosen


def collect(
    maps: Sequence[MapStore], images: Images, ids: Sequence[str], boxes: BoxStore | None = None
) -> list[Example]:
    """Gathers images, maps and boxes.

    Args:
        maps: Sources of maps, at least one.
        images: The dataset or corpus that they are of.
        ids: Ids of the images, in the order to draw them.
        boxes: Boxes that were made from the first source.

    Raises:
        UserError: An id is not among the images, maps or boxes, or the boxes are of other maps.
    """
    if boxes is not None and boxes.identity["maps"] != maps[0].fingerprint:
        raise UserError(f"The boxes in {boxes.folder} were not made from the maps in {maps[0].folder}.")
    wanted = set(ids)
    found = [{row.image_id: row for row in store if row.image_id in wanted} for store in maps]
    for store, by_id in zip(maps, found, strict=True):
        _require(ids, by_id, f"the maps in {store.folder}")
    places = {image_id: place for place, image_id in enumerate(images.ids) if image_id in wanted}
    _require(ids, places, f"the images of {images.name}, {images.split}")
    stored = {image.image_id: image for image in images.read(sorted(places.values()))}
    with_boxes = {} if boxes is None else {row.image_id: row for row in boxes if row.image_id in wanted}
    examples = []
    for image_id in ids:
        try:
            truth = images.mask(stored[image_id])
        except UserError:
            truth = None  # Not known, which is no error here.
        rows = tuple(by_id[image_id] for by_id in found)
        pixels = stored[image_id].decode().image
        if pixels.shape[:2] != (rows[0].height, rows[0].width):
            raise UserError(
                f"Image {image_id!r} has another size than when its map was made: make the maps again."
            )
        limit = None if boxes is None else boxes.categories[rows[0].category].threshold
        examples.append(Example(pixels, truth, rows, limit, with_boxes.get(image_id)))
    return examples


def _require(ids: Sequence[str], known: Container[str], where: str) -> None:
    missing = [image_id for image_id in ids if image_id not in known]
    if missing:
        raise UserError(f"{len(missing)} of the chosen ids are not among {where} (first: {missing[0]!r}).")
