from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from datasets_builders import contact_sheet, registry
from datasets_builders.images import encode_png
from datasets_builders.schema import detection_features

SIZE = 130  # half a tile: everything is drawn at twice its size


def row(image_id: str, boxes: list[list[float]], mask: np.ndarray | None = None) -> dict[str, Any]:
    return {
        "image": {"bytes": encode_png(np.full((SIZE, SIZE, 3), 100, np.uint8)), "path": None},
        "image_id": image_id,
        "width": SIZE,
        "height": SIZE,
        "objects": {
            "id": list(range(1, len(boxes) + 1)),
            "bbox": boxes,
            "area": [1.0] * len(boxes),
            "category": [(n + 2) % 6 for n in range(len(boxes))],
        },
        "mask": {"bytes": encode_png(mask), "path": None} if mask is not None else None,
    }


def draw(rows: list[dict[str, Any]], masks: str = "instance", count: int = 24) -> np.ndarray:
    card = registry.DatasetCard(
        name="drawn", title="", classes=("a", "b", "c", "d", "e", "f"), masks=masks, origin="raw",
        licence="CC0", homepage="", citation="", builder="",
    )  # fmt: skip
    dataset = datasets.Dataset.from_list(rows, features=detection_features(card.classes))
    sheet = contact_sheet.contact_sheet(dataset, card, "train", count, np.random.default_rng(0))
    return np.asarray(sheet)


def pixels_of(sheet: np.ndarray, colour: str) -> np.ndarray:
    return (sheet == np.array(Image.new("RGB", (1, 1), colour))[0, 0]).all(axis=2)


def test_boxes_are_drawn_where_they_are() -> None:
    plain = draw([row("x", [])])
    sheet = draw([row("x", [[30, 40, 50, 60]])])
    colour = pixels_of(sheet, contact_sheet.PALETTE[2])
    top = np.flatnonzero((plain == 100).all(axis=2).any(axis=1))[0]
    left = contact_sheet.MARGIN
    tile = colour[top : top + 260, left : left + 260]
    expected = np.zeros((260, 260), bool)
    expected[80:200, 60:160] = True
    expected[82:198, 62:158] = False
    np.testing.assert_array_equal(tile[80:], expected[80:])


@pytest.mark.parametrize(("masks", "value", "colour"), [("instance", 1, 2), ("binary", 255, None)])
def test_mask_outlines(masks: str, value: int, colour: int | None) -> None:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[50:80, 50:70] = value
    wanted = contact_sheet.PALETTE[colour] if colour is not None else "#ffffff"
    with_mask = pixels_of(draw([row("x", [[1, 20, 128, 109]], mask)], masks), wanted)
    without = pixels_of(draw([row("x", [[1, 20, 128, 109]])], masks), wanted)
    assert 150 < (with_mask & ~without).sum() < 260  # about the perimeter of 60 x 40 pixels, drawn thinly


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3), (2000, 30)])
def test_any_shape_and_any_name_fits(size: tuple[int, int]) -> None:
    shape = row("ein sehr langer Name mit Umlauten ä 中文.jpg", [[0, 0, size[0], size[1]]])
    shape["image"]["bytes"] = encode_png(np.zeros((size[1], size[0], 3), np.uint8))
    shape |= {"width": size[0], "height": size[1]}
    assert draw([shape]).ndim == 3


def test_a_box_of_less_than_a_pixel_of_its_tile_is_drawn() -> None:
    shape = row("x", [[100, 100, 3, 400], [2599, 0, 1, 1]])
    shape["image"]["bytes"] = encode_png(np.zeros((2600, 2600, 3), np.uint8))
    shape |= {"width": 2600, "height": 2600}
    sheet = draw([shape])
    assert all(pixels_of(sheet, contact_sheet.PALETTE[category]).any() for category in (2, 3))


def test_without_images_it_is_an_empty_page() -> None:
    rows = [row("x", [])]
    assert draw(rows).shape[0] > draw(rows, count=0).shape[0] > 0


def test_only_as_many_as_asked_for() -> None:
    rows = [row(str(n), []) for n in range(30)]
    few, all_of_them = draw(rows, count=4), draw(rows, count=100)
    assert few.shape[0] < all_of_them.shape[0]
    images = (all_of_them == 100).all(axis=2).sum() / 260**2
    assert images == pytest.approx(30, rel=0.01)
