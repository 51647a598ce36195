"""Copies of pictures with known truth: turned, rescaled, re-encoded, cut. For tests and measurements."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import cv2
import datasets
import numpy as np

from datasets_builders.audit.descriptors import orient
from datasets_builders.audit.pictures import Collection
from datasets_builders.images import encode_png

Copier = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def turned(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return orient(pixels, int(rng.integers(1, 8)))


def rescaled(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """By 0.5 to 2, each direction on its own half of the time."""
    x = rng.uniform(0.5, 2)
    y = rng.uniform(0.5, 2) if rng.random() < 0.5 else x
    enlarging = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[rng.integers(3)]
    return cv2.resize(pixels, None, fx=x, fy=y, interpolation=cv2.INTER_AREA if min(x, y) < 1 else enlarging)


def recompressed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As JPEG of quality 30 to 90."""
    quality = int(rng.integers(30, 91))
    return cv2.imdecode(
        cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
    )


def cropped(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """To 60 % to 90 % of the area, of any proportions that allow it, anywhere."""
    while True:
        shares = rng.uniform(0.6, 1, 2)
        if 0.6 <= shares.prod() <= 0.9:
            break
    height, width = (int(np.ceil(share * side)) for share, side in zip(shares, pixels.shape[:2], strict=True))
    y, x = rng.integers(0, pixels.shape[0] - height + 1), rng.integers(0, pixels.shape[1] - width + 1)
    return pixels[y : y + height, x : x + width]


def everything(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut, turned, rescaled and saved as JPEG."""
    return recompressed(rescaled(orient(cropped(pixels, rng), int(rng.integers(8))), rng), rng)


COPIERS: dict[str, Copier] = {
    "turned": turned,
    "rescaled": rescaled,
    "recompressed": recompressed,
    "cropped": cropped,
    "everything": everything,
}


def collection(name: str, images: dict[str, np.ndarray], splits: Sequence[str] = ("",)) -> Collection:
    """A collection of pictures, dealt to the splits in turn; its fingerprint is that of the pixels."""
    digest = hashlib.sha256()
    for image_id, pixels in images.items():
        digest.update(f"{image_id}{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "image_id": datasets.Value("string")}
    )
    items = list(images.items())
    parts = []
    for number in range(len(splits)):
        mine = items[number :: len(splits)]
        rows = {
            "image": [{"bytes": encode_png(pixels), "path": None} for _, pixels in mine],
            "image_id": [image_id for image_id, _ in mine],
        }
        parts.append(datasets.Dataset.from_dict(rows, features=features))
    return Collection(name, digest.hexdigest(), tuple(splits), tuple(parts))
