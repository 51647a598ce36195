"""What the anomaly benchmark knows of the images that it tests on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agssp.map_inputs import EncodedImage, Images
from benchmark.anomaly_metrics import Truth

SPLIT = "validation"
"""The split that is tested on; normal images come from `train`."""
_READ_AT_ONCE = 64


def read_truths(images: Images) -> list[Truth]:
    """Reads which images have defects, and where.

    Args:
        images: A split of a detection dataset.

    Returns:
        One for each image, in order. An image without objects has an empty mask; one with objects and without a mask,
        such as half of NEU-DET's, has None.
    """
    normal = set(images.labelled_normals())
    return [_truth(images, encoded, encoded.image_id not in normal) for encoded in _read_all(images)]


def _read_all(images: Images) -> Iterator[EncodedImage]:
    for start in range(0, len(images.ids), _READ_AT_ONCE):
        yield from images.read(range(start, min(start + _READ_AT_ONCE, len(images.ids))))


def _truth(images: Images, encoded: EncodedImage, anomalous: bool) -> Truth:
    if not anomalous:
        return Truth(False, np.zeros((1, 1), bool))  # no defect at any size
    return Truth(True, None if encoded.mask is None else images.mask(encoded))
