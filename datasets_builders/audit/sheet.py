"""Matches side by side, to look at before believing them."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets_builders.audit.descriptors import ORIENTATIONS, orient
from datasets_builders.audit.matching import KINDS, Match
from datasets_builders.audit.pictures import Collection
from datasets_builders.audit.report import Audit

SIDE, GAP, MARGIN, CAPTION, HEADER = 190, 18, 26, 40, 78
BACKGROUND, PANEL, TEXT, FAINT, MARK = "#12161c", "#1c222b", "#eef2f6", "#97a3b1", "#ffb454"
MAX_PAIRS = 24


def choose(matches: list[Match], count: int) -> list[Match]:
    """Returns up to `count` matches: of every kind its best and its weakest, in the order of `KINDS`.

    The weakest ones are where a threshold would be wrong first, so they must be seen.
    """
    order = {kind: place for place, kind in enumerate(KINDS)}
    ranked = sorted(
        matches, key=lambda match: (order[match.kind], -match.score, match.query, match.reference)
    )
    kinds = [list(group) for _, group in groupby(ranked, key=lambda match: match.kind)]
    chosen: set[Match] = set()
    while len(chosen) < min(count, len(matches)):
        for group in kinds:
            left = [match for match in group if match not in chosen]
            chosen.update([*left[:1], *left[-1:]][: count - len(chosen)])
    return [match for match in ranked if match in chosen]


def sheet(audit: Audit, count: int = MAX_PAIRS) -> Image.Image:
    """Draws pairs of an audit: left the first image, right the second, turned to look like the first.

    A frame in the second image shows what of it the first one is, where that is not all of it.

    Args:
        audit: The audit; of a dataset with itself the pairs that straddle its splits are drawn.
        count: Largest number of pairs.
    """
    pairs = choose(audit.leaks(), count)
    columns = min(4, max(1, math.ceil(math.sqrt(len(pairs)))))
    rows = math.ceil(len(pairs) / columns)
    width = max(2 * MARGIN + columns * (2 * SIDE + GAP) - GAP, 640)
    image = Image.new("RGB", (width, HEADER + rows * (SIDE + CAPTION + GAP) + MARGIN - GAP), BACKGROUND)
    draw = ImageDraw.Draw(image)
    names = audit.queries.name if audit.itself else f"{audit.queries.name}  |  {audit.references.name}"
    draw.text((MARGIN, 16), names, font=_font(24), fill=TEXT)
    facts = f"{len(audit.leaks())} pairs, {len(pairs)} shown; right: turned to look like the left"
    draw.text((MARGIN, 48), facts, font=_font(14), fill=FAINT)
    for place, match in enumerate(pairs):
        x = MARGIN + place % columns * (2 * SIDE + GAP)
        y = HEADER + place // columns * (SIDE + CAPTION + GAP)
        image.paste(_pair(audit.queries, audit.references, match), (x, y))
    return image


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(pixels: np.ndarray) -> tuple[Image.Image, tuple[int, int]]:
    """Returns the picture on a tile of SIDE x SIDE with its contrast stretched, and its size on it."""
    low, high = np.percentile(pixels, [1, 99])
    stretched = np.clip((pixels.astype(np.float32) - low) / max(high - low, 8) * 255, 0, 255).astype(np.uint8)
    scale = (SIDE - 4) / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    tile = Image.new("RGB", (SIDE, SIDE), PANEL)
    tile.paste(Image.fromarray(stretched).resize(size, Image.Resampling.LANCZOS), (2, 2))
    return tile, size


def _pair(queries: Collection, references: Collection, match: Match) -> Image.Image:
    panel = Image.new("RGB", (2 * SIDE, SIDE + CAPTION), PANEL)
    left, _ = _fitted(queries.pixels(match.query))
    right, size = _fitted(orient(references.pixels(match.reference), match.orientation))
    window = match.window
    if match.kind in ("crop", "overlap"):
        corners = (
            (window.x, window.y),
            (window.x + window.width, window.y + window.height),
        )
        box = [
            2 + round(min(1.0, max(0.0, value)) * (length - 1))
            for corner in corners
            for value, length in zip(corner, size, strict=True)
        ]
        ImageDraw.Draw(right).rectangle(box, outline=MARK, width=2)
    panel.paste(left, (0, 0))
    panel.paste(right, (SIDE, 0))
    draw, font = ImageDraw.Draw(panel), _font(11)
    for x, collection, row in ((6, queries, match.query), (SIDE + 6, references, match.reference)):
        name = collection.image_id(row)
        name = name if len(name) <= 26 else "..." + name[-23:]
        split = collection.split(row)
        draw.text((x, SIDE + 3), f"{name} {split and '(' + split[:5] + ')'}", font=font, fill=TEXT)
    turned = f", {ORIENTATIONS[match.orientation]}" if match.orientation else ""
    draw.text((6, SIDE + 20), f"{match.kind} {match.score:.2f}{turned}", font=font, fill=MARK)
    return panel
