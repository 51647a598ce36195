"""The true masks as maps: what a perfect detector would say, an upper bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp.map_inputs import Images, MapInput
from agssp.map_sources import AnomalyMaps, MapSource
from datasets_builders.errors import UserError

GRID = 64
"""Rows and columns of the maps: cells of 3 pixels on the procedural images."""


class OracleSource(MapSource):
    """1 in every cell that a defect touches, else 0; the image's score is the map's maximum.

    A touched cell counts in full: averaged, a scratch narrower than a cell would fade below any threshold.
    """

    name = "oracle"
    needs_masks = True

    def identity(self) -> dict[str, Any]:
        return {"method": "oracle", "grid": GRID}

    def check(self, images: Images) -> None:
        from datasets_builders import registry

        card = registry.cards().get(images.name)
        if card is not None and card.masks == "none":
            raise UserError(
                f"{images.name} has no masks, so its true maps are not known.\n"
                "  Choose other maps: python -m agssp maps --help"
            )

    def score(self, batch: Sequence[MapInput], model: None) -> AnomalyMaps:
        maps = np.stack([touched(one.mask) for one in batch if one.mask is not None])
        return AnomalyMaps(maps, maps.max(axis=(1, 2)))


def touched(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Returns which cells of the grid hold a pixel of the mask, wholly or in part.

    Args:
        mask: (H, W), of any size.

    Returns:
        (GRID, GRID) float32 of 0 and 1.
    """
    height, width = mask.shape
    rows, columns = _cover(height), _cover(width)
    # A cell's count of mask pixels is a product of sums: exact in float32 below 2**24 pixels a cell.
    count = rows @ mask.astype(np.float32) @ columns.T
    return (count > 0).astype(np.float32)


def _cover(size: int) -> NDArray[np.float32]:
    """Returns which of `size` pixels each cell of the grid touches, (GRID, size) of 0 and 1."""
    cell = np.arange(GRID)[:, None]
    first, last = cell * size // GRID, -(-(cell + 1) * size // GRID)
    pixel = np.arange(size)
    return ((pixel >= first) & (pixel < last)).astype(np.float32)
