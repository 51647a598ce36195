"""A tiny labelled dataset and recipe: bright squares and dark bars on noise, learned in seconds."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image


def make_split(count: int, seed: int, size: int = 64) -> Any:
    """Makes a split in the detection schema; every fourth image has no object."""
    import datasets

    from datasets_builders.schema import detection_features

    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        pixels = rng.integers(90, 120, (size, size, 3), dtype=np.uint8)
        boxes, labels = [], []
        if index % 4:
            for label in range(2):
                w, h = (int(rng.integers(12, 20)),) * 2 if label == 0 else (int(rng.integers(20, 30)), 8)
                x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
                pixels[y : y + h, x : x + w] = 230 if label == 0 else 20
                boxes.append([x, y, w, h])
                labels.append(label)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "image_id": f"img_{seed}_{index:03d}",
                "width": size,
                "height": size,
                "objects": {
                    "id": list(range(len(boxes))),
                    "bbox": boxes,
                    "area": [float(w * h) for _, _, w, h in boxes],
                    "category": labels,
                },
                "mask": None,
            }
        )
    return datasets.Dataset.from_list(rows, features=detection_features(["square", "bar"]))


@pytest.fixture(scope="session")
def tiny_train() -> Any:
    return make_split(16, seed=1)


@pytest.fixture(scope="session")
def tiny_validation() -> Any:
    return make_split(8, seed=2)
