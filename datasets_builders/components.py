"""From a pixel mask to boxes: every connected region of defect pixels is one object."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Smaller regions are slips of the brush or specks of compression; they get no box.
MIN_PIXELS = 10
MAX_INSTANCES = 255
HIGHEST_NUMBER = 31


@dataclass(frozen=True)
class Region:
    """One connected region: its box `[x, y, width, height]` in pixels, and its number of pixels."""

    bbox: tuple[float, float, float, float]
    area: float


@dataclass(frozen=True)
class Components:
    """The regions of a mask.

    Attributes:
        regions: Regions of at least `MIN_PIXELS` pixels, in order of their first pixel, row by row.
        mask: uint8 (height, width): value k in the k-th region (from 1), 0 elsewhere.
        specks: Number of smaller regions, which are left out.
    """

    regions: list[Region]
    mask: np.ndarray
    specks: int


def connected_components(defect: np.ndarray) -> Components:
    """Finds the connected regions of a mask; pixels that touch by a side or a corner belong together.

    Args:
        defect: bool (height, width), true where there is a defect.

    Raises:
        ValueError: There are more than `MAX_INSTANCES` regions, too many for 8-bit values.
    """
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(defect.astype(np.uint8), connectivity=8)
    kept = [label for label in range(1, count) if statistics[label, cv2.CC_STAT_AREA] >= MIN_PIXELS]
    if len(kept) > MAX_INSTANCES:
        raise ValueError(f"{len(kept)} separate regions, more than {MAX_INSTANCES}")
    # The order of OpenCV's labels is an implementation detail: number regions by their first pixel.
    flat = labels.ravel()
    first = {label: int(np.argmax(flat == label)) for label in kept}
    kept.sort(key=first.__getitem__)
    values = np.zeros(count, np.uint8)
    values[kept] = np.arange(1, len(kept) + 1)
    regions = []
    for label in kept:
        left, top, width, height, area = (float(value) for value in statistics[label])
        regions.append(Region((left, top, width, height), area))
    return Components(regions, values[labels], count - 1 - len(kept))


def binary_mask(pixels: np.ndarray) -> np.ndarray:
    """Tells defect pixels from background in a mask whose values may mean either of two things.

    Masks drawn in black and white have blurred edges, and half of white divides them. Masks that hold class or
    object numbers have no value above `HIGHEST_NUMBER`, and all but 0 is defect.

    Args:
        pixels: uint8 (height, width), as stored.

    Returns:
        bool (height, width).
    """
    return pixels > (0 if pixels.max(initial=0) <= HIGHEST_NUMBER else 127)
