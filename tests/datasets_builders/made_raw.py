"""Small raw folders in the layout of NEU-DET, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 32)
CLASSES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def voc_xml(
    filename: str, objects: Sequence[tuple[str, tuple[float, ...]]], size: tuple[int, int] = SIZE
) -> str:
    """A VOC file; boxes are (xmin, ymin, xmax, ymax)."""
    items = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in objects
    )
    return (
        f"<annotation><filename>{filename}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height></size>{items}</annotation>"
    )


def make_raw(folder: Path, per_class: int = 6) -> Path:
    """A raw folder of noise pictures, with as many boxes in picture N as N % 3 + 1."""
    (folder / "IMAGES").mkdir(parents=True)
    (folder / "ANNOTATIONS").mkdir()
    rng = np.random.default_rng(7)
    for name in CLASSES:
        for number in range(1, per_class + 1):
            stem = f"{name}_{number}"
            pixels = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "IMAGES" / f"{stem}.jpg", quality=90)
            objects = [(name, (1.0 + k, 2.0, 20.0 + k, 31.0)) for k in range(number % 3 + 1)]
            (folder / "ANNOTATIONS" / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", objects))
    return folder
