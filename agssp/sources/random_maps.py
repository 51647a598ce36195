"""Maps of smooth noise that know nothing of the image: the control."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from agssp.map_inputs import MapInput
from agssp.map_sources import AnomalyMaps, MapSource

GRID = 16
SMOOTHNESS = 1.5
"""Standard deviation of the Gaussian that smooths the noise, in cells."""


class RandomSource(MapSource):
    """Smooth Gaussian noise, its values spread evenly over [0, 1]; the image's score is the map's maximum."""

    name = "random"

    def __init__(self, seed: int) -> None:
        """Takes the seed; together with an image's id it determines the image's map."""
        self._seed = seed

    def identity(self) -> dict[str, Any]:
        return {"method": "random", "grid": GRID, "smoothness": SMOOTHNESS, "seed": self._seed}

    def score(self, batch: Sequence[MapInput], model: None) -> AnomalyMaps:
        maps = np.stack([self._map(one.image_id) for one in batch])
        return AnomalyMaps(maps, maps.max(axis=(1, 2)))

    def _map(self, image_id: str) -> NDArray[np.float32]:
        digest = hashlib.sha256(f"{self._seed}:{image_id}".encode()).digest()
        noise = np.random.default_rng(int.from_bytes(digest)).standard_normal((GRID, GRID))
        smooth = gaussian_filter(noise, SMOOTHNESS, mode="wrap")
        return ndtr(smooth / _SPREAD).astype(np.float32)


def _spread() -> float:
    """Returns the standard deviation of the smoothed noise."""
    impulse = np.zeros((GRID, GRID))
    impulse[0, 0] = 1
    return float(np.sqrt((gaussian_filter(impulse, SMOOTHNESS, mode="wrap") ** 2).sum()))


_SPREAD = _spread()
