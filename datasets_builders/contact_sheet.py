"""A page of a dataset's images with their boxes, masks and class names, to look at before believing it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import cv2
import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets_builders.building import undecoded
from datasets_builders.images import decode_image, decode_mask
from datasets_builders.registry import DatasetCard

TILE, GAP, MARGIN, CAPTION = 260, 14, 28, 22
BACKGROUND, PANEL, TEXT, FAINT = "#12161c", "#1c222b", "#eef2f6", "#97a3b1"
# Bright against grey metal; used again from the start for an eleventh class.
PALETTE = (
    "#ff9f1c", "#2ec4f1", "#8ce99a", "#ff6b8b", "#c39bff",
    "#ffe066", "#00d5b4", "#ff7a45", "#74a7ff", "#e4c1f9",
)  # fmt: skip


def contact_sheet(
    dataset: datasets.Dataset, card: DatasetCard, split: str, count: int, rng: np.random.Generator
) -> Image.Image:
    """Draws a random choice of a split's images, in the order of the dataset.

    Boxes have their class's colour. Outlines show the mask: in the object's colour where masks are of
    instances, in white where they are binary.

    Args:
        dataset: The split, with `detection_features`.
        card: The dataset's card.
        split: Name of the split, for the header.
        count: Number of images; all of them if there are fewer.
        rng: Chooses the images.
    """
    rows = sorted(rng.choice(len(dataset), size=min(count, len(dataset)), replace=False).tolist())
    columns = max(1, min(len(rows), max(4, math.ceil(math.sqrt(len(rows) * 1.5)))))
    width = 2 * MARGIN + columns * (TILE + GAP) - GAP
    header = _header(dataset, card, split, width)
    height = header.height + math.ceil(len(rows) / columns) * (TILE + CAPTION + GAP) + MARGIN - GAP
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    sheet.paste(header, (0, 0))
    for place, example in enumerate(undecoded(dataset.select(rows))):
        x = MARGIN + place % columns * (TILE + GAP)
        y = header.height + place // columns * (TILE + CAPTION + GAP)
        sheet.paste(_tile(example, card), (x, y))
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _colour(category: int) -> str:
    return PALETTE[category % len(PALETTE)]


def _header(dataset: datasets.Dataset, card: DatasetCard, split: str, width: int) -> Image.Image:
    """Draws name, counts, and the classes with their colours and numbers of boxes."""
    found = [objects["category"] for objects in dataset["objects"]]
    counts = Counter(category for categories in found for category in categories)
    free = sum(not categories for categories in found)
    facts = [f"{len(dataset)} images", f"{counts.total()} boxes", f"{free} without defects"]
    if card.masks != "none":
        facts.append(f"{card.masks} masks")

    chip_font = _font(15)
    chips, x, y = [], MARGIN, 92
    for index, name in enumerate(card.classes):
        label = f"{name}  {counts[index]}"
        chip_width = int(chip_font.getlength(label)) + 24
        if x > MARGIN and x + chip_width > width - MARGIN:
            x, y = MARGIN, y + 26
        chips.append((x, y, label, _colour(index)))
        x += chip_width + 14
    image = Image.new("RGB", (width, y + 42), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 22), f"{card.name}  ·  {split}", font=_font(28), fill=TEXT)
    draw.text((MARGIN, 60), "   ".join(facts) + f"   licence: {card.licence}", font=_font(16), fill=FAINT)
    for x, y, label, colour in chips:
        draw.rounded_rectangle((x, y + 3, x + 13, y + 16), radius=3, fill=colour)
        draw.text((x + 20, y), label, font=chip_font, fill=TEXT)
    return image


def _tile(example: dict[str, Any], card: DatasetCard) -> Image.Image:
    """Draws one image, scaled to fit, with its annotation, and a caption below."""
    pixels = decode_image(example["image"]["bytes"])
    scale = min(TILE / pixels.shape[1], TILE / pixels.shape[0])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    objects = example["objects"]
    if example["mask"] is not None:
        _draw_mask(picture, decode_mask(example["mask"]["bytes"]), card, objects["category"])
    draw = ImageDraw.Draw(picture)
    font = _font(12)
    for (x, y, w, h), category in zip(objects["bbox"], objects["category"], strict=True):
        # A box of less than a pixel of the tile would end before it begins.
        left, top = x * scale, y * scale
        edges = left, top, max(left, (x + w) * scale - 1), max(top, (y + h) * scale - 1)
        box = [max(0.0, min(value, limit - 1)) for value, limit in zip(edges, size * 2, strict=True)]
        draw.rectangle(box, outline=_colour(category), width=2)
        label = card.classes[category]
        text_width = min(font.getlength(label) + 8, size[0])
        left = max(0.0, min(box[0], size[0] - text_width))
        top = box[1] - 16 if box[1] >= 16 else min(box[3], size[1] - 16)
        draw.rectangle((left, top, left + text_width, top + 16), fill=_colour(category))
        draw.text((left + 4, top + 1), label, font=font, fill="#101418")
    tile = Image.new("RGB", (TILE, TILE + CAPTION), PANEL)
    tile.paste(picture, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    name = example["image_id"] if len(example["image_id"]) <= 26 else "..." + example["image_id"][-23:]
    facts = f"{example['width']} x {example['height']}"
    caption = ImageDraw.Draw(tile)
    caption.rectangle((0, TILE, TILE, TILE + CAPTION), fill=PANEL)
    caption.text((8, TILE + 4), name, font=font, fill=TEXT)
    caption.text((TILE - 8 - font.getlength(facts), TILE + 4), facts, font=font, fill=FAINT)
    return tile


def _draw_mask(picture: Image.Image, mask: np.ndarray, card: DatasetCard, categories: list[int]) -> None:
    """Draws outlines close around the mask's regions, so that thin defects stay visible."""
    scaled = cv2.resize(mask, picture.size, interpolation=cv2.INTER_NEAREST)
    draw = ImageDraw.Draw(picture)
    for value in np.unique(scaled[scaled > 0]).tolist():
        colour = _colour(categories[value - 1]) if card.masks == "instance" else "#ffffff"
        contours, _ = cv2.findContours(
            cv2.dilate((scaled == value).astype(np.uint8), np.ones((5, 5))),
            cv2.RETR_EXTERNAL,
            cv2.CHAIN_APPROX_NONE,
        )
        for contour in contours:
            points = [(int(x), int(y)) for x, y in contour[:, 0]]
            draw.line([*points, points[0]], fill=colour, width=1)
