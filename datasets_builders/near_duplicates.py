"""Images that show the same thing, found before a split is made so that it does not tear them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

SIDE = 64
# Lighting is smooth and alike in unrelated pictures; only what is smaller than this counts (pixels of the
# small picture).
_BLUR_SIGMA = 6.0
THRESHOLD = 0.85
_BLOCK = 512


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Reduces a picture to what identifies it: a small grey picture without its lighting, of unit norm.

    Args:
        image: uint8 (height, width, 3), RGB.

    Returns:
        float32 (SIDE, SIDE); all zero where the picture is flat.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    detail = small - cv2.GaussianBlur(small, (0, 0), _BLUR_SIGMA, borderType=cv2.BORDER_REFLECT)
    norm = float(np.linalg.norm(detail))
    return detail / norm if norm > 1.0 else np.zeros_like(detail)


def near_duplicate_groups(ids: Sequence[str], thumbnails: Sequence[np.ndarray]) -> dict[str, str]:
    """Groups images whose thumbnails correlate by at least `THRESHOLD`, mirrored in either axis or not.

    Images that are alike through others are one group.

    Args:
        ids: Image ids.
        thumbnails: Their thumbnails, see `thumbnail`.

    Returns:
        Image id -> the smallest id of its group.
    """
    flat = np.stack(list(thumbnails)) if ids else np.zeros((0, SIDE, SIDE), np.float32)
    right = flat.reshape(len(ids), SIDE * SIDE).T
    alike: dict[str, set[str]] = {image_id: {image_id} for image_id in ids}
    for mirrored in (flat, flat[:, ::-1], flat[:, :, ::-1], flat[:, ::-1, ::-1]):
        left = mirrored.reshape(len(ids), SIDE * SIDE)
        for start in range(0, len(ids), _BLOCK):
            # Likeness under a mirror is mutual: what comes before the block was compared already.
            found = np.argwhere(left[start : start + _BLOCK] @ right[:, start:] >= THRESHOLD)
            for row, column in found:
                alike[ids[row + start]].add(ids[column + start])
    return join_groups(alike)


def join_groups(labels: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Joins images that share any label, through others too.

    Args:
        labels: Image id -> its labels.

    Returns:
        Image id -> the smallest image id of its group.
    """
    holders: dict[str, list[str]] = {}
    for image_id, own in labels.items():
        for label in own:
            holders.setdefault(label, []).append(image_id)
    group: dict[str, str] = {}
    for start in sorted(labels):
        waiting = [start]
        while waiting:
            image_id = waiting.pop()
            if image_id not in group:
                group[image_id] = start
                waiting += [other for label in labels[image_id] for other in holders.pop(label, ())]
    return group
