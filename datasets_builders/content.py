"""The identity of a dataset's content: splits by hash, subsets by hash rank, and the fingerprint.

Nothing here depends on a path, an order of files, a time or a machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from datasets_builders.images import image_digest
from datasets_builders.storage import content_key


def hash_rank(name: str, key: str) -> float:
    """Places a key in [0, 1): the first 8 bytes of sha256(`name:key`), as a fraction."""
    digest = hashlib.sha256(f"{name}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hash_split(name: str, key: str, train_share: float) -> str:
    """Returns the split of an image (or group of images) by its hash alone, so that it never moves.

    Args:
        name: Name of the dataset.
        key: The image id, or the id of its group where images belong together.
        train_share: Share of the keys that go to `train`.
    """
    return "train" if hash_rank(name, key) < train_share else "validation"


def exact_halves(name: str, keys: Iterable[str]) -> dict[str, str]:
    """Splits images 1:1: the half of lower hash rank (the larger one, if odd) is `train`.

    Every key's rank is fixed; where images are added or taken away, only those at the boundary change sides.

    Args:
        name: Name of the dataset.
        keys: All image ids.
    """
    ranked = sorted(keys, key=lambda key: hash_rank(name, key))
    half = (len(ranked) + 1) // 2
    return {key: "train" if place < half else "validation" for place, key in enumerate(ranked)}


def subset_order(name: str, categories: Mapping[str, Sequence[int]]) -> list[str]:
    """Orders images so that every prefix is a subset to train on, each contained in the longer ones.

    For each class the image of lowest hash rank that shows it comes first, so that a prefix of at least as
    many images as there are classes shows every class; then all others by hash rank.

    Args:
        name: Name of the dataset.
        categories: Image id -> category indices of its objects.
    """
    ranked = sorted(categories, key=lambda image_id: hash_rank(name, image_id))
    present = sorted({category for found in categories.values() for category in found})
    first = [next(i for i in ranked if category in categories[i]) for category in present]
    return list(dict.fromkeys(first + ranked))


def example_digest(split: str, example: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Returns the sha256 of one example's content: split, id, size, image, and each object's class and box.

    Ids of objects, areas and masks are left out: they follow from the rest, or are an addition to it.

    Args:
        split: The example's split.
        example: A row of a detection dataset whose image is not decoded (`{"bytes": ...}`).
        classes: Class names in index order.
    """
    objects = [
        [classes[category], [float(np.float32(value)) for value in bbox]]
        for category, bbox in zip(example["objects"]["category"], example["objects"]["bbox"], strict=True)
    ]
    return content_key(
        [
            split,
            example["image_id"],
            example["width"],
            example["height"],
            image_digest(example["image"]["bytes"]),
            objects,
        ]
    )


def dataset_fingerprint(classes: Sequence[str], digests: Iterable[str]) -> str:
    """Returns the fingerprint of a dataset from the digests of all its examples, in any order."""
    return content_key([list(classes), sorted(digests)])
