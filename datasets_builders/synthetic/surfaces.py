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
from datasets_builders.synthetic.numerics import Field, Source, direction, slopes

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
        roughness: Contrast of texture and noise from pixel to pixel, relative to the brightness.
        edges: Sides (`left`, `right`, `top`, `bottom`) on which the metal ends inside the image.
    """

    gray: Field
    vertical: bool
    light: tuple[float, float]
    metal: tuple[int, int, int, int]
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    glow: Field | None = None
    sensor: float = 0.0
    corners: float = 0.0
    roughness: float = 0.0
    edges: list[str] = field(default_factory=list)

    def lit(self, height: Field) -> Field:
        """Returns the change of brightness that a relief (pixels of height) gives under this light."""
        down, right = slopes(height)
        return -(right * self.light[0] + down * self.light[1])


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
    np.clip(canvas.gray, DARKEST, BRIGHTEST, out=canvas.gray)
    low, high = canvas.span if canvas.span else (0, across)
    metal = (low, 0, high, along) if vertical else (0, low, along, high)
    edges = [
        name if vertical else {"left": "top", "right": "bottom"}[name]
        for name, cut in (("left", low > 0), ("right", high < across))
        if cut
    ]
    sensor = source.between(recipe["sensor"])
    warmth = source.between(recipe["tint"])
    return Surface(
        gray=np.ascontiguousarray(canvas.gray if vertical else canvas.gray.T),
        vertical=vertical,
        light=light,
        metal=metal,
        tint=(1.0 + warmth, 1.0 + 0.25 * warmth, 1.0 - warmth),
        glow=None if canvas.glow is None else (canvas.glow if vertical else canvas.glow.T),
        sensor=sensor,
        corners=source.between(recipe["corners"]),
        roughness=_roughness(canvas.gray[:, low:high], sensor),
        edges=edges,
    )


def _roughness(gray: Field, sensor: float) -> float:
    """Returns the mean step between diagonal neighbours over the mean brightness, noise included."""
    # Whole numbers, so that the sums do not depend on their order.
    scaled = (gray * 4096).astype(np.int32)
    steps, total = np.abs(scaled[1:, 1:] - scaled[:-1, :-1]), scaled.sum(dtype=np.int64)
    brightness = int(total) / scaled.size
    return int(steps.sum(dtype=np.int64)) / steps.size / brightness + sensor * (0.35 * 4096 / brightness + 1)


def photograph(surface: Surface, source: Source) -> NDArray[np.uint8]:
    """Takes the picture: darker corners, sensor noise, tint, 8 bits.

    Args:
        surface: What to photograph; left unchanged.
        source: Random numbers for the noise: the same state gives the same noise, whatever is on the metal.

    Returns:
        RGB image (rows, columns, 3), uint8.
    """
    rows, columns = surface.gray.shape
    down = (np.arange(rows, dtype=np.float32) * (2.0 / rows) - 1)[:, None]
    right = np.arange(columns, dtype=np.float32) * (2.0 / columns) - 1
    shade = 1 - (surface.corners / 2) * (down * down + right * right)
    noise = source.noise(rows, columns) * surface.sensor
    seen = surface.gray * shade + noise * (0.35 + surface.gray)
    image = np.empty((rows, columns, 3), np.uint8)
    for channel in range(3):
        values = seen * (255 * surface.tint[channel])
        if surface.glow is not None:
            values += surface.glow * seen * ((330.0, 40.0, -70.0)[channel])
        values += 0.5
        np.clip(values, 0, 255, out=values)
        image[..., channel] = values.astype(np.uint8)
    return image
