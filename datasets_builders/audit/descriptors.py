"""What an image looks like from far away, as a short vector for each part of it and each way to turn it.

A picture is squashed to a square of 64 x 64, so that other sizes and proportions make no difference. The
vector is the low-frequency part of its cosine transform. Three things are taken out, because all pictures of
one camera share them and they would make every two of them look alike: lighting (local mean and contrast),
everything that is constant along rows or along columns (edges of the strip, rolling marks, sensor columns),
and the fall of the spectrum. The transform is separable, so that the vectors of 69 windows of a picture, each
at least 57 % of it, cost two matrix products; and the vectors of its mirror images and rotations are the same
numbers with other signs and places.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import cv2
import numpy as np

THUMB = 64
"""Side of the squashed picture, in pixels."""
FREQUENCIES = 10
"""Cosines in each direction. More would tell more pictures apart and need a finer grid of windows."""
ORIENTATIONS = (
    "as it is",
    "mirrored left-right",
    "mirrored top-bottom",
    "turned by 180°",
    "mirrored at the diagonal",
    "turned by 90° clockwise",
    "turned by 90° counter-clockwise",
    "mirrored at the other diagonal",
)
"""What was done to a picture: transposed if bit 2 of the index is set, then mirrored left-right (bit 0) and
top-bottom (bit 1)."""
SHARES = ((1.0, 1), (0.89, 2), (0.79, 3), (0.70, 4), (0.62, 5))
"""Windows along one direction: (share of the picture's side, number of places), in steps of about 0.08."""
MIN_AREA = 0.57
"""Smallest window, as a share of the picture's area: a grid step under the 60 % that must be found."""


class Window(NamedTuple):
    """A part of a picture, as fractions of its width and height: left, top, width, height."""

    x: float
    y: float
    width: float
    height: float


WHOLE = Window(0.0, 0.0, 1.0, 1.0)


def _intervals() -> list[tuple[float, float]]:
    """Returns (start, share) of all windows along one direction; the whole comes first."""
    return [((1 - share) * (k + 0.5) / places, share) for share, places in SHARES for k in range(places)]


INTERVALS = _intervals()
_PAIRS = [
    (row, column)
    for row, column in product(range(len(INTERVALS)), repeat=2)
    if INTERVALS[row][1] * INTERVALS[column][1] >= MIN_AREA
]
WINDOWS = tuple(
    Window(INTERVALS[column][0], INTERVALS[row][0], INTERVALS[column][1], INTERVALS[row][1])
    for row, column in _PAIRS
)
"""All windows; the first is the whole picture."""


def _kept() -> np.ndarray:
    """Returns which coefficients make the vector: a quarter disc without the constant rows and columns."""
    radius = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])
    kept = radius <= FREQUENCIES - 0.5
    kept[0] = kept[:, 0] = False
    return kept


_KEPT = _kept()
DIMENSIONS = int(_KEPT.sum())
_FLATTEN = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES]).astype(np.float32)


def _cosines() -> np.ndarray:
    """Returns float32 (intervals * FREQUENCIES, THUMB): the cosines of each interval, averaged over pixels."""
    fine = 8
    position = (np.arange(THUMB * fine) + 0.5) / (THUMB * fine)
    rows = []
    for start, share in INTERVALS:
        inside = (position - start) / share
        within = (inside >= 0) & (inside < 1)
        for k in range(FREQUENCIES):
            wave = np.cos(np.pi * k * inside) * within / share
            rows.append(wave.reshape(THUMB, fine).mean(axis=1) / THUMB)
    return np.array(rows, np.float32)


_COSINES = _cosines()


def squash(grey: np.ndarray) -> np.ndarray:
    """Returns the picture as uint16 (THUMB, THUMB): grey values 0..255 in steps of 1/256.

    Eight bits would not do: averaged over pixels, the texture of smooth steel is finer than one grey value.
    """
    smaller = min(grey.shape) >= THUMB
    size = (THUMB, THUMB)
    small = cv2.resize(
        grey.astype(np.float32), size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    return np.rint(small * 256).astype(np.uint16)


def even_contrast(picture: np.ndarray, radius: float) -> np.ndarray:
    """Takes local brightness and contrast out of a picture.

    Args:
        picture: float32 (height, width), grey values 0..255.
        radius: How far "local" reaches, in pixels.

    Returns:
        float32 of the same shape, of mean about 0 and standard deviation at most about 1; where contrast is
        far below one grey value it stays near 0.
    """
    side = 2 * round(radius) + 1
    detail: np.ndarray = picture - cv2.blur(picture, (side, side), borderType=cv2.BORDER_REFLECT)
    power = cv2.blur(np.square(detail), (side, side), borderType=cv2.BORDER_REFLECT)
    return detail / (np.sqrt(np.maximum(power, 0)) + 1.0)


def even_thumb(thumb: np.ndarray) -> np.ndarray:
    """Returns a squashed picture with even contrast, float32 (THUMB, THUMB)."""
    return even_contrast(thumb.astype(np.float32) / np.float32(256), THUMB / 6)


def _finish(coefficients: np.ndarray) -> np.ndarray:
    vectors = (coefficients * _FLATTEN)[..., _KEPT]
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-6)).astype(np.float32)


def _coefficients(thumbs: np.ndarray, windows: bool) -> np.ndarray:
    """Returns float32 (images, windows, FREQUENCIES, FREQUENCIES)."""
    even = np.stack([even_thumb(thumb) for thumb in thumbs])
    cosines = _COSINES if windows else _COSINES[:FREQUENCIES]
    both = np.matmul(np.matmul(cosines, even), cosines.T)
    count = len(cosines) // FREQUENCIES
    blocks = both.reshape(len(even), count, FREQUENCIES, count, FREQUENCIES)
    pairs = _PAIRS if windows else [(0, 0)]
    return np.stack([blocks[:, row, :, column] for row, column in pairs], axis=1)


def _oriented(coefficients: np.ndarray) -> np.ndarray:
    """Returns (images, orientations, windows, F, F): the coefficients of the turned and mirrored windows."""
    signs = (1.0 - 2.0 * (np.arange(FREQUENCIES) % 2)).astype(np.float32)
    turned = []
    for orientation in range(len(ORIENTATIONS)):
        block = coefficients.swapaxes(-1, -2) if orientation & 4 else coefficients
        block = block * signs if orientation & 1 else block
        turned.append(block * signs[:, None] if orientation & 2 else block)
    return np.stack(turned, axis=1)


def describe(thumbs: np.ndarray, windows: bool, orientations: bool) -> np.ndarray:
    """Returns the vectors of pictures.

    Args:
        thumbs: uint16 (images, THUMB, THUMB), see `squash`.
        windows: All of `WINDOWS`, or the whole picture alone.
        orientations: All of `ORIENTATIONS`, or the picture as it is alone.

    Returns:
        float32 (images, orientations, windows, DIMENSIONS), each of length 1; of a picture without any
        detail all zero.
    """
    coefficients = _coefficients(thumbs, windows)
    return _finish(_oriented(coefficients) if orientations else coefficients[:, None])


def orient(picture: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors a picture (height, width[, channels]); see `ORIENTATIONS`."""
    if orientation & 4:
        picture = picture.swapaxes(0, 1)
    if orientation & 1:
        picture = picture[:, ::-1]
    if orientation & 2:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def orient_window(window: Window, orientation: int) -> Window:
    """Returns where a window of a picture is in the turned and mirrored picture."""
    x, y, width, height = window
    if orientation & 4:
        x, y, width, height = y, x, height, width
    if orientation & 1:
        x = 1 - x - width
    if orientation & 2:
        y = 1 - y - height
    return Window(x, y, width, height)
