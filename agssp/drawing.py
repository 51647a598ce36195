"""What sheets of images have in common: their look, tiles of one size, and labels that do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE, GAP, MARGIN, CAPTION, HEADER = 240, 10, 24, 24, 58
BACKGROUND, PANEL, TEXT, FAINT = "#12161c", "#1c222b", "#eef2f6", "#97a3b1"
FOUND = "#56b4e9"
LABEL_SIZE, LABEL_HEIGHT = 11, 14
Pixels = NDArray[np.uint8]
Rectangle = tuple[float, float, float, float]


def typeface(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns the font of all sheets in a size of pixels."""
    return ImageFont.load_default(size)


def shortened(text: str, size: int, room: int) -> str:
    """Returns the text, its middle left out where it is too long for the room."""
    font = typeface(size)
    if font.getlength(text) <= room:
        return text
    keep = len(text) - 1
    while keep > 2 and font.getlength(text[: keep // 2] + "…" + text[-(keep // 2) :]) > room:
        keep -= 1
    return text[: keep // 2] + "…" + text[-(keep // 2) :]


def scaled_size(size: tuple[int, int], side: int = TILE) -> tuple[int, int]:
    """Returns the (width, height) of a picture of this size that fits on a tile."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def on_tile(picture: Image.Image, side: int = TILE) -> Image.Image:
    """Returns a tile with the picture in its middle."""
    tile = Image.new("RGB", (side, side), PANEL)
    tile.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return tile


def picture_tile(pixels: Pixels, side: int = TILE) -> Image.Image:
    """Returns a tile with an image, (H, W, 3) RGB, as large as it fits."""
    size = scaled_size((pixels.shape[1], pixels.shape[0]), side)
    return on_tile(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), side)


def empty_tile(text: str, side: int = TILE) -> Image.Image:
    """Returns a tile that says why there is nothing."""
    tile, font = Image.new("RGB", (side, side), PANEL), typeface(14)
    left = (side - font.getlength(text)) / 2
    ImageDraw.Draw(tile).text((left, side / 2 - 8), text, font=font, fill=FAINT)
    return tile


def colours(values: NDArray[np.float32], low: float, high: float) -> Pixels:
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


def places_on_tile(corners: NDArray[np.float32], size: tuple[int, int], side: int = TILE) -> list[Rectangle]:
    """Returns where boxes of an image lie on its tile.

    Args:
        corners: (n, 4) x1, y1, x2, y2 in pixels of the image.
        size: Width and height of the image.
        side: Of the tile.
    """
    drawn = scaled_size(size, side)
    start = np.subtract(side, drawn) // 2
    edges = corners * np.tile(np.divide(drawn, size), 2) + np.tile(start, 2) - (0, 0, 1, 1)
    edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2])
    return [tuple(values) for values in edges.tolist()]


def draw_boxes(picture: Image.Image, boxes: Sequence[tuple[Rectangle, str]]) -> None:
    """Draws boxes (x, y, width, height in pixels) with their labels into a picture, in a size that can be read."""
    side = max(picture.size)
    line, pen, font = max(1, side // 300), ImageDraw.Draw(picture), typeface(max(LABEL_SIZE, side // 50))
    for (x, y, width, height), text in boxes:
        corners = (x, y, max(x + width - 1, x), max(y + height - 1, y))
        pen.rectangle(corners, outline=FOUND, width=line)
        room = pen.textbbox((0, 0), text, font=font)
        # Above the box, or inside where the image ends.
        left = max(0.0, min(x, picture.width - room[2] - 4))
        top = y - room[3] - 2 if y > room[3] + 2 else y
        pen.rectangle((left, top, left + room[2] + 4, top + room[3] + 2), fill=FOUND)
        pen.text((left + 2, top), text, font=font, fill=BACKGROUND)


def draw_labels(tile: Image.Image, places: list[Rectangle], texts: list[str], backgrounds: list[str]) -> None:
    """Writes a label beside each box where there is room for it: the first boxes come first.

    Args:
        tile: A square.
        places: Of the boxes.
        texts: One a box.
        backgrounds: Colour behind each text.
    """
    pen, font = ImageDraw.Draw(tile), typeface(LABEL_SIZE)
    labels: list[Rectangle] = []
    for number, (text, background) in enumerate(zip(texts, backgrounds, strict=True)):
        others = places[:number] + places[number + 1 :]
        room = (font.getlength(text) + 6, LABEL_HEIGHT)
        label = label_place(places[number], room, labels, others, tile.width)
        if label is not None:
            labels.append(label)
            pen.rectangle(label, fill=background)
            pen.text((label[0] + 3, label[1]), text, font=font, fill="#101418")


def label_place(
    box: Rectangle,
    room: tuple[float, float],
    labels: list[Rectangle],
    boxes: list[Rectangle],
    side: int = TILE,
) -> Rectangle | None:
    """Returns where a box's label covers no other label, and if it can be no other box; None where it cannot."""
    x = max(0.0, min(box[0], side - room[0]))
    y = max(0.0, min(box[1], side - room[1]))
    corners = (
        (x, box[1] - room[1]),
        (x, box[3] + 1),
        (box[2] + 1, y),
        (box[0] - room[0] - 1, y),
        (x, y),
        (x, box[3] - room[1]),
    )
    places = [(left, top, left + room[0], top + room[1]) for left, top in corners]
    inside = [p for p in places if min(p) >= 0 and max(p) <= side]
    for avoided in (labels + boxes, labels):
        for place in inside:
            if not any(overlap(place, other) for other in avoided):
                return place
    return None


def overlap(a: Rectangle, b: Rectangle) -> bool:
    """Tells whether two rectangles share an area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
