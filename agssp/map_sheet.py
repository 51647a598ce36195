"""Drawing of maps, masks and pseudo boxes beside their images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from agssp.box_store import BoxRow
from agssp.drawing import (
    BACKGROUND,
    CAPTION,
    FAINT,
    GAP,
    HEADER,
    MARGIN,
    TEXT,
    TILE,
    Pixels,
    colours,
    draw_labels,
    empty_tile,
    on_tile,
    picture_tile,
    places_on_tile,
    scaled_size,
    shortened,
    typeface,
)
from agssp.map_store import MapRow
from agssp.upsampling import upsample

BAR = 12
# Bright against grey metal and unlike the masks' white.
BOX = "#2ec4f1"


@dataclass(frozen=True)
class Example:
    """One image and what is drawn beside it.

    Attributes:
        pixels: (H, W, 3) RGB uint8.
        truth: (H, W) bool, its true mask; None where it is not known.
        maps: Its map of every source.
        threshold: Map values above it are in the mask; None to draw no mask.
        boxes: Its boxes; None to draw none.
    """

    pixels: Pixels
    truth: NDArray[np.bool_] | None
    maps: tuple[MapRow, ...]
    threshold: float | None = None
    boxes: BoxRow | None = None


def sheet(examples: Sequence[Example], names: Sequence[str], title: str) -> Image.Image:
    """Draws one row an image: the image, its true mask where known, and the map of every source.

    Where there are boxes, the first source's map is followed by its mask above the threshold, and the image with the
    boxes and their scores. A source has one range of colours for all rows, stated above them: from the lowest to the
    highest value that is shown.

    Args:
        examples: At least one.
        names: Of the sources.
        title: Of the page.
    """
    ranges = [
        (
            min(float(example.maps[k].map.min()) for example in examples),
            max(float(example.maps[k].map.max()) for example in examples),
        )
        for k in range(len(names))
    ]
    truths = any(example.truth is not None for example in examples)
    with_boxes = any(example.boxes is not None for example in examples)
    columns = 1 + truths + len(names) + 2 * with_boxes
    width = 2 * MARGIN + columns * (TILE + GAP) - GAP
    top = MARGIN + 40
    page = Image.new(
        "RGB", (width, top + HEADER + len(examples) * (TILE + CAPTION + GAP) + MARGIN), BACKGROUND
    )
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN - 4), shortened(title, 24, width - 2 * MARGIN), font=typeface(24), fill=TEXT)

    headings: list[tuple[str, tuple[float, float] | None]] = [("image", None)]
    headings += [("true mask", None)] * truths
    sources = list(zip(names, ranges, strict=True))
    headings += [
        sources[0],
        *[("above the threshold", None), ("pseudo boxes", None)] * with_boxes,
        *sources[1:],
    ]
    for column, (heading, limits) in enumerate(headings):
        x = MARGIN + column * (TILE + GAP)
        pen.text((x, top + 8), shortened(heading, 16, TILE), font=typeface(16), fill=TEXT)
        if limits is not None:
            _colour_bar(page, (x, top + 34), *limits)
    for row, example in enumerate(examples):
        y = top + HEADER + row * (TILE + CAPTION + GAP)
        for column, panel in enumerate(_panels(example, ranges, truths, with_boxes)):
            page.paste(panel, (MARGIN + column * (TILE + GAP), y))
        caption = shortened(_caption(example), 13, width - 2 * MARGIN)
        pen.text((MARGIN, y + TILE + 4), caption, font=typeface(13), fill=FAINT)
    return page


def _panels(
    example: Example, ranges: Sequence[tuple[float, float]], truths: bool, with_boxes: bool
) -> list[Image.Image]:
    size = example.pixels.shape[1], example.pixels.shape[0]
    values = [upsample(row.map, size) for row in example.maps]
    maps = [picture_tile(colours(each, *limits)) for each, limits in zip(values, ranges, strict=True)]
    panels = [picture_tile(example.pixels)]
    if truths:
        panels.append(empty_tile("not known") if example.truth is None else _mask(example.truth))
    panels.append(maps[0])
    if with_boxes:
        assert example.threshold is not None, "boxes have a threshold"
        panels += [_mask(values[0] > np.float32(example.threshold)), _boxes(example)]
    return panels + maps[1:]


def _colour_bar(page: Image.Image, place: tuple[int, int], low: float, high: float) -> None:
    """Draws the scale, with the values of its ends on either side of it."""
    pen, font = ImageDraw.Draw(page), typeface(12)
    digits = max(0, 1 - math.floor(math.log10(high - low or 1)))
    texts = f"{low:.{digits}f}", f"{high:.{digits}f}"
    before, after = (int(font.getlength(text)) + 6 for text in texts)
    length = TILE - before - after
    ramp = np.linspace(0, 1, length, dtype=np.float32)[None].repeat(BAR, axis=0)
    page.paste(Image.fromarray(colours(ramp, 0, 1)), (place[0] + before, place[1]))
    pen.text((place[0], place[1] - 2), texts[0], font=font, fill=FAINT)
    pen.text((place[0] + before + length + 6, place[1] - 2), texts[1], font=font, fill=FAINT)


def _caption(example: Example) -> str:
    row = example.maps[0]
    parts = [row.image_id, row.category, f"{row.width} x {row.height}"]
    parts += [f"image score {', '.join(f'{each.image_score:.3f}' for each in example.maps)}"]
    if example.threshold is not None:
        parts.append(f"threshold {example.threshold:.3f}")
    if example.boxes is not None:
        count = len(example.boxes.boxes)
        parts.append(f"{count} box" if count == 1 else f"{count} boxes")
    return "   ·   ".join(parts)


def _mask(mask: NDArray[np.bool_]) -> Image.Image:
    """Draws a mask so that thin defects stay visible: a drawn pixel is as bright as its brightest source."""
    size = scaled_size((mask.shape[1], mask.shape[0]))
    reach = max(1, int(np.ceil(max(mask.shape) / TILE)))
    thick = cv2.dilate(mask.astype(np.uint8) * 255, np.ones((reach, reach), np.uint8))
    picture = Image.fromarray(thick).resize(size, Image.Resampling.NEAREST)
    return on_tile(picture.convert("RGB"))


def _boxes(example: Example) -> Image.Image:
    """Draws the image with its boxes and, where there is room for them, their scores."""
    assert example.boxes is not None, "called for examples with boxes"
    # On the whole tile, so that labels may stand beside a thin picture.
    tile = picture_tile(example.pixels)
    pen = ImageDraw.Draw(tile)
    boxes = example.boxes.boxes
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    places = places_on_tile(corners, (example.pixels.shape[1], example.pixels.shape[0]))
    for place in places:
        pen.rectangle(place, outline=BOX, width=2)
    scores = [f"{score:.2f}" for score in example.boxes.scores.tolist()]
    draw_labels(tile, places, scores, [BOX] * len(places))
    return tile
