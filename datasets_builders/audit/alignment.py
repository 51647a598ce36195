"""Whether two pictures show the same piece of metal: lay one over the other, then compare them pixel by pixel.

Two pictures are compared in a common frame: a window of the first, and a window of the second that is moved
and stretched until both agree (Gauss-Newton on four parameters, in the inverse compositional form of Baker
and Matthews 2004). What is compared then is texture alone: in both, whatever is constant along rows or
columns is taken out, and contrast is evened. The score is the median of the correlations of 16 tiles. Two
pictures of one strip share edges and stripes, perhaps one conspicuous hole, but not the grain in most tiles;
copies share the grain everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from datasets_builders.audit.descriptors import THUMB, Window, even_contrast, even_thumb

LARGEST_FRAME, SMALLEST_FRAME = 128, 40
"""Side of the frame of the second look, in pixels, within what both pictures have."""
TILES = 4
"""Tiles in each direction."""
MIN_INSIDE = 0.5
"""Share of the frame that must lie inside the second picture."""
_LARGEST_STEP = 0.08


class Agreement(NamedTuple):
    """How well two pictures agree once aligned.

    Attributes:
        score: Median over the tiles of the correlation of texture, -1..1; -1 where they cannot be laid over
            each other.
        whole: Correlation of texture over the whole frame, -1..1.
        window: Window of the second picture that lies in the frame; may reach a little beyond it.
    """

    score: float
    whole: float
    window: Window


@cache
def _coordinates(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fractions (x, y) of the pixels' centres, float32 (side, side) each."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.broadcast_to(centres, (side, side)), np.broadcast_to(centres[:, None], (side, side))


def cut(picture: np.ndarray, window: Window, side: int) -> np.ndarray:
    """Returns a window of a picture, resampled to (side, side); beyond its edges the picture is mirrored."""
    height, width = picture.shape
    to_pixels = np.array(
        [
            [window.width * width / side, 0, (window.x + 0.5 * window.width / side) * width - 0.5],
            [0, window.height * height / side, (window.y + 0.5 * window.height / side) * height - 0.5],
        ],
        np.float64,
    )
    return cv2.warpAffine(
        picture,
        to_pixels,
        (side, side),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )


def _normalised(picture: np.ndarray) -> np.ndarray:
    mean, deviation = cv2.meanStdDev(picture)
    return (picture - np.float32(mean[0, 0])) / np.float32(deviation[0, 0] + 1e-6)


def align(first: np.ndarray, second: np.ndarray, window: Window, steps: int) -> Window:
    """Moves and stretches a window of the second picture until it looks like the first.

    Args:
        first: float32 (side, side).
        second: float32 (height, width), in about the same resolution.
        window: Where to start.
        steps: Largest number of Gauss-Newton steps.

    Returns:
        The window; unchanged where the first picture has no detail to go by.
    """
    side = len(first)
    target = _normalised(first)
    x, y = _coordinates(side)
    slope_x = cv2.Sobel(target, cv2.CV_32F, 1, 0, ksize=3, scale=side / 8)
    slope_y = cv2.Sobel(target, cv2.CV_32F, 0, 1, ksize=3, scale=side / 8)
    jacobian = np.stack([slope_x * (x - 0.5), slope_x, slope_y * (y - 0.5), slope_y]).reshape(4, -1)
    hessian = jacobian @ jacobian.T
    smallest, *_, largest = np.linalg.eigvalsh(hessian)
    if not smallest > 1e-6 * largest:
        return window
    solve = np.linalg.inv(hessian) @ jacobian
    for _ in range(steps):
        error = _normalised(cut(second, window, side)) - target
        step = np.clip(solve @ error.ravel(), -_LARGEST_STEP, _LARGEST_STEP)
        stretch_x, move_x, stretch_y, move_y = (float(value) for value in step)
        # The inverse of the step is applied inside the window.
        width, height = window.width / (1 + stretch_x), window.height / (1 + stretch_y)
        window = Window(
            window.x + 0.5 * window.width - (0.5 + move_x) * width,
            window.y + 0.5 * window.height - (0.5 + move_y) * height,
            width,
            height,
        )
        if np.abs(step).max() < 0.05 / side:
            break
    return window


def _texture(picture: np.ndarray) -> np.ndarray:
    """Takes out what is constant along rows or columns over a quarter of the picture, and evens contrast."""
    length = len(picture) // 4 | 1
    border = cv2.BORDER_REFLECT
    picture = picture - cv2.blur(picture, (1, length), borderType=border)
    picture = picture - cv2.blur(picture, (length, 1), borderType=border)
    power = cv2.blur(picture * picture, (length, length), borderType=border)
    return picture / (np.sqrt(np.maximum(power, 0)) + 1.0)


def _correlations(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the correlations of the tiles that lie mostly inside, and that of the whole frame."""
    weight = inside.astype(np.float32)
    first, second = first * weight, second * weight
    values = np.stack([weight, first, second, first * first, second * second, first * second])
    starts = np.linspace(0, len(first), TILES + 1).astype(int)[:-1]
    rows = np.add.reduceat(values, starts, axis=1, dtype=np.float64)
    sums = np.add.reduceat(rows, starts, axis=2)
    sizes = np.diff([*starts, len(first)])
    tiles = sums[:, sums[0] > 0.5 * np.outer(sizes, sizes)]
    return _from_sums(tiles), float(_from_sums(sums.sum(axis=(1, 2))))


def _from_sums(sums: np.ndarray) -> np.ndarray:
    """Returns correlations from sums of 1, a, b, a^2, b^2 and ab along the first axis."""
    count, a, b, aa, bb, ab = sums
    spread = (aa - a * a / count) * (bb - b * b / count)
    return (ab - a * b / count) / np.sqrt(np.maximum(spread, 0) + 1e-9)


def _agreement(first: np.ndarray, second: np.ndarray, window: Window) -> Agreement:
    """Compares two aligned frames, float32 (side, side), grey values."""
    side = len(first)
    x, y = _coordinates(side)
    x, y = window.x + x * window.width, window.y + y * window.height
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    if inside.mean() < MIN_INSIDE:
        return Agreement(-1.0, -1.0, window)
    tiles, whole = _correlations(_texture(first), _texture(second), inside)
    return Agreement(float(np.median(tiles)) if tiles.size else -1.0, whole, window)


def _possible(window: Window) -> bool:
    """Tells whether a window is one that a copy, a crop or an overlap could have led to."""
    sizes = 0.45 < window.width < 1.3 and 0.45 < window.height < 1.3
    return sizes and all(
        start > -0.4 and start + length < 1.4
        for start, length in ((window.x, window.width), (window.y, window.height))
    )


class Thumb(NamedTuple):
    """A squashed picture, float32 grey values, and with even contrast, sharp and blurred."""

    grey: np.ndarray
    even: np.ndarray
    blurred: np.ndarray


def prepare_thumb(thumb: np.ndarray) -> Thumb:
    """Prepares a squashed picture (uint16, see `descriptors.squash`) for `first_look`."""
    even = even_thumb(thumb)
    return Thumb(thumb.astype(np.float32) / 256, even, cv2.GaussianBlur(even, (0, 0), 2))


def first_look(first: Thumb, second: Thumb, first_window: Window, second_window: Window) -> Agreement:
    """Aligns and compares squashed pictures: cheap, and enough to discard almost every wrong pair.

    Args:
        first: First picture.
        second: Second picture, turned as the candidate says.
        first_window: Window of the first picture: the frame.
        second_window: Window of the second picture to start from.
    """
    half = THUMB // 2
    window = align(cut(first.blurred, first_window, half), second.blurred, second_window, steps=5)
    window = align(cut(first.even, first_window, THUMB), second.even, window, steps=5)
    if not _possible(window):
        return Agreement(-1.0, -1.0, window)
    return _agreement(cut(first.grey, first_window, THUMB), cut(second.grey, window, THUMB), window)


def _at_scale(picture: np.ndarray, window: Window, side: int) -> np.ndarray:
    """Resizes a picture so that the window has about `side` pixels in both directions; float32."""
    size = max(8, round(side / window.width)), max(8, round(side / window.height))
    smaller = size[0] < picture.shape[1] and size[1] < picture.shape[0]
    resized = cv2.resize(
        picture.astype(np.float32), size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    )
    return cv2.GaussianBlur(resized, (0, 0), 0.7)


def second_look(
    first: np.ndarray, second: np.ndarray, first_window: Window, second_window: Window
) -> Agreement:
    """Aligns and compares pictures in the finest resolution that both have, up to `LARGEST_FRAME`.

    Args:
        first: uint8 (height, width).
        second: uint8 (height, width), turned as the candidate says.
        first_window: Window of the first picture: the frame.
        second_window: Window of the second picture to start from, as `first_look` found it.
    """
    there = [
        size * share
        for picture, window in ((first, first_window), (second, second_window))
        for size, share in zip(picture.shape, (window.height, window.width), strict=True)
    ]
    side = int(np.clip(min(there), SMALLEST_FRAME, LARGEST_FRAME))
    ours = cut(_at_scale(first, first_window, side), first_window, side)
    theirs = _at_scale(second, second_window, side)
    radius = side / 16
    window = align(even_contrast(ours, radius), even_contrast(theirs, radius), second_window, steps=6)
    if not _possible(window):
        return Agreement(-1.0, -1.0, window)
    return _agreement(ours, cut(theirs, window, side), window)
