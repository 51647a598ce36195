"""Drawing of maps, masks and pseudo boxes beside their images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from agssp.box_store import BoxRow
from agssp.map_store import MapRow
from agssp.upsampling import Map, upsample

TILE, GAP, MARGIN, CAPTION, HEADER, BAR = 240, 10, 24, 24, 58, 12
BACKGROUND, PANEL, TEXT, FAINT, MARK = "#12161c", "#1c222b", "#eef2f6", "#97a3b1", "#ffb454"
# Bright against grey metal and unlike the masks' white.
BOX = "#2ec4f1"
Pixels = NDArray[np.uint8]
Rectangle = tuple[float, float, float, float]


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
    pen.text((MARGIN, MARGIN - 4), _fit(title, 24, width - 2 * MARGIN), font=_font(24), fill=TEXT)

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
        pen.text((x, top + 8), _fit(heading, 16, TILE), font=_font(16), fill=TEXT)
        if limits is not None:
            _colour_bar(page, (x, top + 34), *limits)
    for row, example in enumerate(examples):
        y = top + HEADER + row * (TILE + CAPTION + GAP)
        for column, panel in enumerate(_panels(example, ranges, truths, with_boxes)):
            page.paste(panel, (MARGIN + column * (TILE + GAP), y))
        caption = _fit(_caption(example), 13, width - 2 * MARGIN)
        pen.text((MARGIN, y + TILE + 4), caption, font=_font(13), fill=FAINT)
    return page


def _panels(
    example: Example, ranges: Sequence[tuple[float, float]], truths: bool, with_boxes: bool
) -> list[Image.Image]:
    size = example.pixels.shape[1], example.pixels.shape[0]
    values = [upsample(row.map, size) for row in example.maps]
    maps = [_picture(colours(each, *limits)) for each, limits in zip(values, ranges, strict=True)]
    panels = [_picture(example.pixels)]
    if truths:
        panels.append(_nothing() if example.truth is None else _mask(example.truth))
    panels.append(maps[0])
    if with_boxes:
        assert example.threshold is not None, "boxes have a threshold"
        panels += [_mask(values[0] > np.float32(example.threshold)), _boxes(example)]
    return panels + maps[1:]


def colours(values: Map, low: float, high: float) -> Pixels:
    """Colours values between black (`low`) and pale yellow (`high`) on a perceptually uniform scale (inferno).

    Args:
        values: (H, W) float32.
        low: Values at or under it are black.
        high: Values at or over it are pale yellow.

    Returns:
        (H, W, 3) RGB uint8.
    """
    span = max(high - low, float(np.finfo(np.float32).tiny))
    levels = np.rint(((values - low) / span).clip(0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(np.uint8)


def _colour_bar(page: Image.Image, place: tuple[int, int], low: float, high: float) -> None:
    """Draws the scale, with the values of its ends on either side of it."""
    pen, font = ImageDraw.Draw(page), _font(12)
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


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, size: int, room: int) -> str:
    """Returns the text, its middle left out where it is too long for the room."""
    font = _font(size)
    if font.getlength(text) <= room:
        return text
    keep = len(text) - 1
    while keep > 2 and font.getlength(text[: keep // 2] + "…" + text[-(keep // 2) :]) > room:
        keep -= 1
    return text[: keep // 2] + "…" + text[-(keep // 2) :]


def _scale(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size of a picture that fits on a tile."""
    scale = TILE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _tile(picture: Image.Image) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE), PANEL)
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile


def _picture(pixels: Pixels) -> Image.Image:
    size = _scale((pixels.shape[1], pixels.shape[0]))
    return _tile(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _mask(mask: NDArray[np.bool_]) -> Image.Image:
    """Draws a mask so that thin defects stay visible: a drawn pixel is as bright as its brightest source."""
    size = _scale((mask.shape[1], mask.shape[0]))
    reach = max(1, int(np.ceil(max(mask.shape) / TILE)))
    thick = cv2.dilate(mask.astype(np.uint8) * 255, np.ones((reach, reach), np.uint8))
    picture = Image.fromarray(thick).resize(size, Image.Resampling.NEAREST)
    return _tile(picture.convert("RGB"))


def _nothing() -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE), PANEL)
    text, font = "not known", _font(14)
    ImageDraw.Draw(tile).text(((TILE - font.getlength(text)) / 2, TILE / 2 - 8), text, font=font, fill=FAINT)
    return tile


def _boxes(example: Example) -> Image.Image:
    """Draws the image with its boxes and, where there is room for them, their scores."""
    height, width = example.pixels.shape[:2]
    size = _scale((width, height))
    # On the whole tile, so that labels may stand beside a thin picture.
    tile = _picture(example.pixels)
    pen, font = ImageDraw.Draw(tile), _font(11)
    start = np.subtract(TILE, size) // 2
    assert example.boxes is not None, "called for examples with boxes"
    corners = np.hstack([example.boxes.boxes[:, :2], example.boxes.boxes[:, :2] + example.boxes.boxes[:, 2:]])
    edges = corners * np.tile(np.divide(size, (width, height)), 2) + np.tile(start, 2) - (0, 0, 1, 1)
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2])
    places: list[Rectangle] = [tuple(values) for values in edges.tolist()]
    labels: list[Rectangle] = []
    for place in places:
        pen.rectangle(place, outline=BOX, width=2)
    for number, score in enumerate(example.boxes.scores.tolist()):
        text = f"{score:.2f}"
        others = places[:number] + places[number + 1 :]
        label = _label_place(places[number], (font.getlength(text) + 6, 14), labels, others)
        if label is not None:
            labels.append(label)
            pen.rectangle(label, fill=BOX)
            pen.text((label[0] + 3, label[1]), text, font=font, fill="#101418")
    return tile


def _label_place(
    box: Rectangle,
    room: tuple[float, float],
    labels: list[Rectangle],
    boxes: list[Rectangle],
) -> Rectangle | None:
    """Returns where a box's label covers no other label, and if it can be no other box; None where it cannot."""
    x = max(0.0, min(box[0], TILE - room[0]))
    y = max(0.0, min(box[1], TILE - room[1]))
    corners = (
        (x, box[1] - room[1]),
        (x, box[3] + 1),
        (box[2] + 1, y),
        (box[0] - room[0] - 1, y),
        (x, y),
        (x, box[3] - room[1]),
    )
    places = [(left, top, left + room[0], top + room[1]) for left, top in corners]
    inside = [p for p in places if min(p) >= 0 and max(p) <= TILE]
    for avoided in (labels + boxes, labels):
        for place in inside:
            if not any(_overlap(place, other) for other in avoided):
                return place
    return None


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
