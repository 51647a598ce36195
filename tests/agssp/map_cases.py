"""What the tests of maps share: a small corpus, a source that is cheap and can be watched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp.map_inputs import MapInput
from agssp.map_sources import AnomalyMaps, MapSource

CORPUS = "corpus_synthetic/n150_k3_s0"
"""150 images of 3 categories, in turns."""


class PlainSource(MapSource):
    """The image itself, block means of its grey values, minus the mean grey value of the normal images."""

    name = "plain"
    needs_normals = True
    batch_size = 7

    def __init__(self) -> None:
        self.fitted: dict[str, list[NDArray[np.uint8]]] = {}
        self.scored: list[str] = []

    def identity(self) -> dict[str, Any]:
        return {"method": "plain"}

    def fit(self, category: str, normals: Sequence[NDArray[np.uint8]]) -> float:
        assert category not in self.fitted, "fitted once"
        self.fitted[category] = list(normals)
        return float(np.mean([image.mean() for image in normals])) if normals else 0.0

    def score(self, batch: Sequence[MapInput], model: float) -> AnomalyMaps:
        assert len({one.category for one in batch}) == 1
        assert len(batch) <= self.batch_size
        self.scored += [one.image_id for one in batch]
        maps = np.stack([self.values(one.image, model) for one in batch])
        return AnomalyMaps(maps, maps.mean(axis=(1, 2)))

    @staticmethod
    def values(image: NDArray[np.uint8], model: float) -> NDArray[np.float32]:
        height, width = image.shape[0] // 6, image.shape[1] // 4
        cells = image[: height * 6, : width * 4].reshape(6, height, 4, width, 3)
        return np.abs(cells.mean(axis=(1, 3, 4)) - model).astype(np.float32) / 128

    def rate(self, category: str, batch: Sequence[MapInput]) -> NDArray[np.float32]:
        return np.array([one.image.std() for one in batch], np.float32)

    def embed(self, batch: Sequence[MapInput]) -> NDArray[np.float32]:
        features = np.stack([self.values(one.image, 0).ravel() for one in batch])
        return features / np.linalg.norm(features, axis=1, keepdims=True)


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
