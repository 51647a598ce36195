"""Metal without defects: surfaces built from layers that a recipe lists.

A recipe is data (`configs/surfaces.yaml`): brightness, tint, camera, and a list of layers with their ranges.
The same recipes serve the detection datasets and unlabelled corpora (one category = one recipe).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_builders.synthetic import layers
from datasets_builders.synthetic.numerics import Field, Source, direction, lattice_noise, slopes

DARKEST, BRIGHTEST = 0.02, 0.94
"""Limits of a defect-free surface in [0, 1]: a defect stays visible at either end."""


@dataclass
class Surface:
    """A bare piece of metal, before the camera.

    Attributes:
        gray: Reflected light, float32 (rows, columns), about [0, 1].
        vertical: The rolling (or casting, or pipe) direction runs down the image rather than across it.
        light: Direction towards the light as (x, y), unit length.
        metal: Part of the image that is metal: (left, top, right, bottom), end exclusive.
        tint: Factors for red, green and blue.
        glow: Where red heat shines through, float32 (rows, columns) in [0, 1], or None.
        sensor: Standard deviation of the camera's noise at full brightness, in [0, 1] units.
        corners: How much darker the corners are, in [0, 1].
    """

    gray: Field
    vertical: bool
    light: tuple[float, float]
    metal: tuple[int, int, int, int]
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    glow: Field | None = None
    sensor: float = 0.0
    corners: float = 0.0
    edges: list[str] = field(default_factory=list)

    def lit(self, height: Field) -> Field:
        """Returns the change of brightness that a relief (pixels of height) gives under this light."""
        down, right = slopes(height)
        return -(right * np.float32(self.light[0]) + down * np.float32(self.light[1]))


def render_surface(recipe: Mapping[str, Any], source: Source, size: tuple[int, int]) -> Surface:
    """Makes one piece of metal.

    Args:
        recipe: Entry of `configs/surfaces.yaml`: `brightness`, `tint`, `vertical` (probability), `sensor`,
            `corners`, `layers`.
        source: Random numbers; the same state gives the same surface on every machine.
        size: (rows, columns) in pixels.

    Returns:
        The surface, not yet photographed (see `photograph`).
    """
    vertical = source.chance(recipe["vertical"])
    light = direction(source.uniform())
    along, across = size if vertical else size[::-1]
    gray = np.full((along, across), source.between(recipe["brightness"]), np.float32)
    canvas = layers.Canvas(gray=gray, light=light if vertical else light[::-1])
    for layer in recipe["layers"]:
        if source.chance(layer.get("chance", 1.0)):
            layers.KINDS[layer["kind"]](canvas, source, layer)
    np.clip(canvas.gray, np.float32(DARKEST), np.float32(BRIGHTEST), out=canvas.gray)
    low, high = canvas.span if canvas.span else (0, across)
    metal = (low, 0, high, along) if vertical else (0, low, along, high)
    edges = [
        name if vertical else {"left": "top", "right": "bottom"}[name]
        for name, cut in (("left", low > 0), ("right", high < across))
        if cut
    ]
    warmth = source.between(recipe["tint"])
    return Surface(
        gray=np.ascontiguousarray(canvas.gray if vertical else canvas.gray.T),
        vertical=vertical,
        light=light,
        metal=metal,
        tint=(1.0 + warmth, 1.0 + 0.25 * warmth, 1.0 - warmth),
        glow=None if canvas.glow is None else (canvas.glow if vertical else canvas.glow.T),
        sensor=source.between(recipe["sensor"]),
        corners=source.between(recipe["corners"]),
        edges=edges,
    )


def photograph(surface: Surface, source: Source) -> NDArray[np.uint8]:
    """Takes the picture: darker corners, sensor noise, tint, 8 bits.

    Args:
        surface: What to photograph; left unchanged.
        source: Random numbers for the noise: the same state gives the same noise, whatever is on the metal.

    Returns:
        RGB image (rows, columns, 3), uint8.
    """
    rows, columns = surface.gray.shape
    down = (np.arange(rows, dtype=np.float32) * np.float32(2.0 / rows) - np.float32(1))[:, None]
    right = np.arange(columns, dtype=np.float32) * np.float32(2.0 / columns) - np.float32(1)
    shade = np.float32(1) - np.float32(surface.corners / 2) * (down * down + right * right)
    noise = source.noise(rows, columns) * np.float32(surface.sensor)
    seen = surface.gray * shade + noise * (np.float32(0.35) + surface.gray)
    image = np.empty((rows, columns, 3), np.uint8)
    for channel in range(3):
        values = seen * np.float32(255 * surface.tint[channel])
        if surface.glow is not None:
            values += surface.glow * seen * np.float32((330.0, 40.0, -70.0)[channel])
        values += np.float32(0.5)
        np.clip(values, np.float32(0), np.float32(255), out=values)
        image[..., channel] = values.astype(np.uint8)
    return image


__all__ = ["Surface", "lattice_noise", "photograph", "render_surface"]
