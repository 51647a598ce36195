"""Stores of maps made for tests, through the writer that real ones come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agssp.map_store import MapRow, MapStore, open_maps, read_part, write_part, write_store


def map_row(
    image_id: str, values: Any, size: tuple[int, int], category: str = "plate", score: float = 1.0
) -> MapRow:
    """A row whose map has the values that it will have once stored."""
    stored = np.asarray(values, np.float16).astype(np.float32)
    return MapRow(image_id, category, *size, score, stored)


def store_maps(folder: Path, rows: Sequence[MapRow], dataset: dict[str, Any] | None = None) -> MapStore:
    """Writes rows as a finished store; `dataset` is the identity of the images."""
    folder.mkdir(parents=True)
    part = folder.with_name(f"{folder.name}.part")
    write_part(part, rows, "key")
    dataset = dataset or {"name": "none", "split": "train", "fingerprint": ""}
    identity = {"request": {"dataset": dataset, "source": {"name": "made"}}, "normals": {}}
    write_store(folder, [read_part(part, "key")], len(rows), dataset["split"], identity)
    part.unlink()
    return open_maps(folder)


def defect_map(rng: np.random.Generator, grid: tuple[int, int] = (15, 15), blobs: int = 2) -> np.ndarray:
    """A map as a detector gives it: a level background with some smooth peaks, within [0, 2]."""
    y, x = np.mgrid[: grid[0], : grid[1]]
    values = 0.5 + 0.05 * rng.random(grid)
    for _ in range(blobs):
        centre = rng.uniform(0, grid)
        spread = rng.uniform(0.6, 1.6)
        distance = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        values += rng.uniform(0.2, 0.7) * np.exp(-distance / (2 * spread**2))
    return values.clip(0, 2).astype(np.float32)
