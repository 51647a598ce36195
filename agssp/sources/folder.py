"""Maps that the user made elsewhere: a folder with one file an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agssp.map_inputs import Images, MapInput
from agssp.map_sources import AnomalyMaps, MapSource
from datasets_builders.errors import UserError
from datasets_builders.images import MAX_PIXELS
from datasets_builders.storage import canonical_json

SUFFIXES = (".npy", ".png", ".tif", ".tiff")
GRID = 64
"""Maps of other sizes are averaged onto a grid of so many rows and columns."""
HIGHEST = 2.0
"""Floating-point maps are in [0, HIGHEST], as KeAD's."""
_NAMED = 5


class FolderSource(MapSource):
    """`DIR/IMAGE_ID.npy`, `.png`, `.tif` or `.tiff`: one channel, covering the whole image, higher is more anomalous.

    Integers are divided by their type's largest value; floating-point values are in [0, 2] and stay. If all maps are
    of one size of at most 64 a side, that is the grid; else they are averaged onto 64 x 64. The image's score
    is the map's maximum.
    """

    def __init__(self, folder: Path) -> None:
        """Takes the folder.

        Raises:
            UserError: There is none.
        """
        if not folder.is_dir():
            raise UserError(f"--maps folder:{folder}: there is no such folder.")
        self.name = f"folder:{folder}"
        self._folder = folder.resolve()
        self._files: dict[str, Path] = {}
        self._grid = (GRID, GRID)
        self._content = ""

    def identity(self) -> dict[str, Any]:
        """Returns the hash of all files' contents, known after `check`."""
        assert self._content, "checked before"
        return {"method": "folder", "grid": list(self._grid), "content": self._content}

    def check(self, images: Images) -> None:
        self._files = {}
        missing: list[str] = []
        sizes = set()
        content = hashlib.sha256()
        for image_id in images.ids:
            path = self._find(image_id)
            if path is None:
                missing.append(image_id)
                continue
            self._files[image_id] = path
            if missing:
                continue
            data = path.read_bytes()
            content.update(canonical_json([image_id, path.suffix, hashlib.sha256(data).hexdigest()]).encode())
            sizes.add(read_map(path).shape)
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise UserError(
                f"{self._folder} has no map for {len(missing)} of {len(images.ids)} images: "
                f"{', '.join(missing[:_NAMED])}{more}.\n  A map is named like its image: "
                f"{self._folder / (missing[0] + SUFFIXES[0])}"
            )
        only = next(iter(sizes)) if len(sizes) == 1 else (GRID + 1, GRID + 1)
        self._grid = (only[0], only[1]) if max(only) <= GRID else (GRID, GRID)
        self._content = content.hexdigest()

    def _find(self, image_id: str) -> Path | None:
        """Returns the file of an image's map; None where there is none.

        Raises:
            UserError: The name or a link leads out of the folder, or there are several.
        """
        parts = PurePosixPath(image_id).parts
        if not parts or image_id.startswith("/") or "\\" in image_id or "\0" in image_id or ".." in parts:
            raise UserError(f"The image id {image_id!r} cannot be the name of a file in {self._folder}.")
        place = self._folder.joinpath(*parts)
        found = [path for suffix in SUFFIXES if (path := place.with_name(place.name + suffix)).is_file()]
        if len(found) > 1:
            raise UserError(
                f"{self._folder} has several maps of {image_id}: {', '.join(p.name for p in found)}."
            )
        if found and not found[0].resolve().is_relative_to(self._folder):
            raise UserError(
                f"{found[0]} is a link that leads out of {self._folder}. Put the file itself there."
            )
        return found[0] if found else None

    def score(self, batch: Sequence[MapInput], model: None) -> AnomalyMaps:
        maps = np.stack(list(self._maps(batch)))
        return AnomalyMaps(maps, maps.max(axis=(1, 2)))

    def _maps(self, batch: Sequence[MapInput]) -> Iterator[NDArray[np.float32]]:
        height, width = self._grid
        for one in batch:
            values = read_map(self._files[one.image_id])
            # OpenCV's AREA is the exact mean where it shrinks, and bilinear where it enlarges.
            if values.shape != self._grid:
                values = cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
            yield values


def read_map(path: Path) -> NDArray[np.float32]:
    """Reads a map from a file, which need not be trusted.

    Args:
        path: `.npy`, or an image that Pillow opens as PNG or TIFF.

    Returns:
        (h, w) float32: integers divided by their type's largest value, floating-point values as they are.

    Raises:
        UserError: The file is no such map, or too large, or a value is not in range.
    """
    try:
        values = _read_npy(path) if path.suffix == ".npy" else _read_image(path)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an anomaly map: {error}") from error
    if values.ndim != 2 or not 0 < values.size <= MAX_PIXELS:
        raise UserError(
            f"{path} has shape {values.shape}. An anomaly map has rows and columns, at most {MAX_PIXELS} values in all."
        )
    if values.dtype == bool or values.dtype in (np.uint8, np.uint16):
        largest = 1 if values.dtype == bool else np.iinfo(values.dtype).max
        return np.ascontiguousarray(values, np.float32) / np.float32(largest)
    if values.dtype.kind != "f":
        raise UserError(
            f"{path} has values of type {values.dtype}. Use floating-point, uint8 or uint16 values."
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= HIGHEST):  # also where they are not numbers
        raise UserError(f"{path} has values from {low} to {high}. Scale them to 0 (normal) .. {HIGHEST:g}.")
    return np.ascontiguousarray(values, np.float32)


def _read_npy(path: Path) -> NDArray[Any]:
    # Memory-mapped, so that a header alone cannot ask for memory: the file must be as large as it says.
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError("several arrays in one file")
    return values


def _read_image(path: Path) -> NDArray[Any]:
    with Image.open(path, formats=("PNG", "TIFF")) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels is over the limit of {MAX_PIXELS}")
        if file.mode not in ("L", "F", "1") and not file.mode.startswith("I;16"):
            raise ValueError(
                f"mode {file.mode}: one channel of 8 or 16 bits, or of floating-point values, is needed"
            )
        values = np.asarray(file)
    return values.astype(np.uint16) if values.dtype.kind == "u" and values.dtype.itemsize == 2 else values
