"""Pictures of the board: samples of datasets, and what records detect; made once, kept in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import datasets_builders
from agssp.drawing import draw_labels, picture_tile, places_on_tile
from benchmark.explain import explain
from benchmark.records import StoredRecord
from datasets_builders import registry, storage
from datasets_builders.hub_card import hub_licence
from datasets_builders.registry import DatasetCard
from datasets_builders.storage import atomic_folder, content_key
from leaderboard.disk_cache import DiskCache

# Of the palette of Okabe and Ito, bright against grey metal; used again from the start for a ninth class.
_PALETTE = ("#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#00c08b", "#ff7f3f", "#eef2f6", "#6aa5ff")
_SIDE = 260
_SHEETS = DiskCache("sheet", ".png", most=500)


def may_be_shown(card: DatasetCard) -> bool:
    """Whether a dataset's pictures may stand on a public page: they are generated, or the licence allows copies."""
    return card.origin == "procedural" or hub_licence(card.licence) is not None


def samples(card: DatasetCard, number: int = 6) -> list[Path]:
    """Returns pictures of a dataset with their boxes, made on first use.

    Args:
        card: Of the dataset.
        number: How many.

    Returns:
        PNG files; none where the pictures may not be shown or are not on this machine.

    Raises:
        UserError: The dataset is damaged.
    """
    if not may_be_shown(card):
        return []
    if card.origin != "procedural" and not datasets_builders.is_ready(card.name):
        return []
    key = content_key([2, card.dataset, list(card.classes), number, _SIDE, _identity(card)])
    folder = storage.home() / "leaderboard" / f"samples-{key}"
    if not folder.is_dir():
        found = _rendered(card, number) if card.origin == "procedural" else _prepared(card, number)
        with atomic_folder(folder) as temporary:
            for place, (pixels, boxes, categories) in enumerate(found):
                _tile(card, pixels, boxes, categories).save(temporary / f"{place}.png", format="PNG")
    return sorted(folder.glob("*.png"))


def _identity(card: DatasetCard) -> str:
    if card.origin != "procedural":
        return datasets_builders.fingerprint(card.name)
    from datasets_builders.synthetic.scenes import load_config

    config = load_config(card.scenes)
    return f"{config['version']}-{config['seed']}"


_Sample = tuple[np.ndarray, np.ndarray, list[int]]


def _rendered(card: DatasetCard, number: int) -> list[_Sample]:
    """Renders images with defects; the dataset itself need not be there."""
    from datasets_builders.synthetic.builder import as_example
    from datasets_builders.synthetic.scenes import render

    found: list[_Sample] = []
    index = 0
    while len(found) < number:
        scene = render(card.scenes, index, "train")
        if scene.masks:
            objects = as_example("", scene, card.classes).objects
            boxes = np.array([entry.bbox for entry in objects], np.float32).reshape(-1, 4)
            found.append((scene.image, boxes, list(scene.categories)))
        index += 1
    return found


def _prepared(card: DatasetCard, number: int) -> list[_Sample]:
    """Takes images with objects from a dataset on this machine, spread over its training split."""
    split = datasets_builders.load(card.name, "train")
    with_objects = [row for row, entry in enumerate(split["objects"]) if entry["bbox"]]
    rows = [with_objects[i] for i in np.linspace(0, len(with_objects) - 1, number).astype(int)]
    found: list[_Sample] = []
    for row in rows:
        example = split[row]
        boxes = np.array(example["objects"]["bbox"], np.float32).reshape(-1, 4)
        pixels = np.asarray(example["image"].convert("RGB"))
        found.append((pixels, boxes, list(example["objects"]["category"])))
    return found


def _tile(card: DatasetCard, pixels: np.ndarray, boxes: np.ndarray, categories: Sequence[int]) -> Image.Image:
    tile = picture_tile(pixels, _SIDE)
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    places = places_on_tile(corners, (pixels.shape[1], pixels.shape[0]), _SIDE)
    colours = [_PALETTE[category % len(_PALETTE)] for category in categories]
    pen = ImageDraw.Draw(tile)
    for place, colour in zip(places, colours, strict=True):
        pen.rectangle(place, outline=colour, width=2)
    draw_labels(tile, places, [card.classes[c].replace("_", " ") for c in categories], colours)
    return tile


def sheet(records: Sequence[StoredRecord], number: int) -> Path:
    """Returns a picture of what one record detects, or where two differ most, made on first use.

    Args:
        records: One or two, of the same data.
        number: How many images.

    Raises:
        UserError: As `benchmark.explain.explain`.
    """
    # Two records of one key may hold different detections: one was sent, the other measured again.
    shown = [(entry.record.key, entry.record.last.detections_sha256) for entry in records]
    key = content_key([2, shown, number])
    path = _SHEETS.path(key)
    if not path.is_file():
        explain(
            [entry.path for entry in records],
            path,
            number=number,
            ids=(),
            threshold=None,
            weights=[None] * len(records),
            detections_only=True,
            seed=0,
        )
        _SHEETS.trim()
    return path


def sheet_possible(dataset: str) -> str | None:
    """Says why the pictures of a dataset are not drawn on a page; None where they may be."""
    card = registry.card(dataset)
    if not may_be_shown(card):
        return (
            f"The licence of {dataset} ({card.licence}) does not allow its pictures on a page that others may "
            "see. Draw "
            "them for yourself: python -m benchmark explain RECORD --detections-only"
        )
    return None
