"""Layers of a bare metal surface: texture, light, and process marks that look like defects but are none.

Every layer works in rolling coordinates: rows run along the rolling (casting, pipe) direction, columns
across. Each takes the canvas, random numbers and its entry of the recipe, and changes the canvas in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets_builders.synthetic.numerics import (
    Field,
    Source,
    cloud_noise,
    direction,
    lattice_noise,
    ramp,
    slopes,
    smooth,
)

Recipe = Mapping[str, Any]


@dataclass
class Canvas:
    """A surface in the making.

    Attributes:
        gray: Reflected light, float32 (along, across).
        light: Direction towards the light as (across, along), unit length.
        span: First and last-plus-one column that is metal, or None for all.
        glow: Where red heat shines through, in [0, 1], or None.
    """

    gray: Field
    light: tuple[float, float]
    span: tuple[int, int] | None = None
    glow: Field | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(along, across) in pixels."""
        return self.gray.shape[0], self.gray.shape[1]

    def scale(self, change: Field) -> None:
        """Multiplies the surface by 1 + change."""
        self.gray += self.gray * change


def _pair(recipe: Recipe, key: str, source: Source) -> tuple[float, float]:
    along, across = recipe[key]
    return source.between(along), source.between(across)


def grain(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Fine texture: noise averaged over `spread` pixels (along, across)."""
    spread = (source.count(recipe["spread"][0]), source.count(recipe["spread"][1]))
    canvas.scale(source.noise(*canvas.shape, spread=spread) * source.between(recipe["amount"]))


def mottle(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Soft blotches or streaks: smooth noise with cells of `cell` pixels (along, across)."""
    cell = _pair(recipe, "cell", source)
    octaves = recipe.get("octaves", 1)
    # Streaks stay straight; blotches are bent.
    make = cloud_noise if octaves >= 3 else lattice_noise
    noise = make(source, canvas.shape, cell, octaves)
    canvas.scale(noise * source.between(recipe["amount"]))


def slant(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Streaks at an angle to the rolling direction: grain sheared by `slope` columns a row."""
    rows, columns = canvas.shape
    slope = source.between(recipe["slope"]) * source.sign()
    extra = int(abs(slope) * rows) + 2
    spread = (source.count(recipe["spread"][0]), source.count(recipe["spread"][1]))
    wide = source.noise(rows, columns + extra, spread=spread)
    row = np.arange(rows)[:, None]
    shift = np.floor(row * slope).astype(np.intp) - (int(np.floor((rows - 1) * slope)) if slope < 0 else 0)
    sheared = wide[row, np.arange(columns)[None, :] + shift]
    canvas.scale(sheared * source.between(recipe["amount"]))


def relief(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Roughness under slanting light: the slope of smooth noise towards the light."""
    height = lattice_noise(source, canvas.shape, _pair(recipe, "cell", source), recipe.get("octaves", 2))
    along, across = slopes(height)
    shade = across * canvas.light[0] + along * canvas.light[1]
    canvas.scale(shade * source.between(recipe["amount"]))


def flakes(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Patches of scale or oxide with ragged borders, on about `share` of the surface, darker or lighter."""
    noise = cloud_noise(source, canvas.shape, _pair(recipe, "cell", source), recipe.get("octaves", 3))
    level = 1.0 - 2.0 * source.between(recipe["share"])
    inside = np.clip((noise - level) * source.between(recipe["sharp"]), 0, 1)
    canvas.scale(inside * source.between(recipe["amount"]))


def bands(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Repeated marks across the rolling direction: oscillation marks of a mould, chatter of a roll."""
    rows, columns = canvas.shape
    period = source.between(recipe["period"])
    wobble = lattice_noise(source, canvas.shape, (period * 1.5, columns / 3), 2)
    place = np.arange(rows, dtype=np.float32)[:, None] * (1.0 / period) + source.uniform()
    place = place + wobble * source.between(recipe["wobble"])
    # The pace of the mould varies, so no two marks are equally far apart.
    place = place + lattice_noise(source, (rows, 1), (period * 2, 1)) * 0.35
    share = place - np.floor(place)
    # A sharp fall and a slow rise: each mark is a small step lit from one side.
    fall = source.between(recipe.get("sharp", 0.2))
    profile = np.where(share < fall, smooth(share / fall), smooth((1 - share) / (1 - fall)))
    live = 0.75 + 0.5 * lattice_noise(source, canvas.shape, (period * 2, columns / 4), 2)
    canvas.scale((profile - 0.5) * live * (source.between(recipe["amount"]) * source.sign()))


def lines(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Faint straight lines along the rolling direction: roller and guide marks."""
    rows, columns = canvas.shape
    for _ in range(source.count(recipe["count"])):
        length = int(rows * source.between(recipe["length"]))
        top = source.integer(-length // 2, rows - length // 2)
        width = source.integer(*recipe.get("width", (1, 2)))
        left = source.integer(0, columns - width)
        amount = source.between(recipe["amount"]) * (1 if source.chance(recipe.get("bright", 0.5)) else -1)
        first, last = max(top, 0), min(top + length, rows)
        if last - first < 8:
            continue
        fade = lattice_noise(source, (last - first, 1), (length / 3, 1), 2) * 0.5 + 0.6
        fade *= np.minimum(ramp(np.arange(first - top, last - top, dtype=np.float32), length / 2), 1)[:, None]
        part = canvas.gray[first:last, left : left + width]
        part += part * np.clip(fade, 0, 1) * amount


def hairs(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Hairline marks of grinding and handling at any angle, one pixel wide and faint."""
    rows, columns = canvas.shape
    tilt = recipe.get("tilt", 0.5)
    for _ in range(source.count(recipe["count"])):
        x, y = direction(source.uniform(-tilt, tilt) / 2 + 0.25)
        length = source.integer(*recipe["length"])
        step = np.arange(length, dtype=np.float32)
        bend = source.uniform(-0.002, 0.002)
        across = step * x + step * step * bend + (source.uniform(-0.1, 1.0) * columns)
        along = step * y + (source.uniform(-0.2, 1.0) * rows)
        column, row = np.floor(across).astype(np.intp), np.floor(along).astype(np.intp)
        inside = (column >= 0) & (column < columns - 1) & (row >= 0) & (row < rows)
        column, row = column[inside], row[inside]
        share = (across - np.floor(across))[inside]
        amount = source.between(recipe["amount"]) * (1 if source.chance(0.7) else -1)
        ends = np.clip(np.minimum(step, step[::-1]) * 0.15, 0, 1)[inside] * amount
        canvas.gray[row, column] *= 1 + ends * (1 - share)
        canvas.gray[row, column + 1] *= 1 + ends * share


def specks(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Dust and tiny pits: dots of one to three pixels."""
    rows, columns = canvas.shape
    for _ in range(source.count(recipe["count"])):
        tall, wide = source.integer(*recipe.get("size", (1, 3))), source.integer(1, 2)
        row, column = source.integer(0, rows - tall), source.integer(0, columns - wide)
        amount = source.between(recipe["amount"]) * (-1 if source.chance(recipe.get("dark", 0.8)) else 1)
        part = canvas.gray[row : row + tall, column : column + wide]
        part += part * amount


def smudges(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Large faint clouds without a border: handling, haze, uneven pickling."""
    rows, columns = canvas.shape
    down = np.arange(rows, dtype=np.float32)[:, None]
    right = np.arange(columns, dtype=np.float32)
    for _ in range(source.count(recipe["count"])):
        tall, wide = source.between(recipe["size"]), source.between(recipe["size"])
        v = (down - source.uniform(0, rows)) * (1 / tall)
        u = (right - source.uniform(0, columns)) * (1 / wide)
        body = smooth(np.clip(1 - (u * u + v * v), 0, 1))
        canvas.scale(body * (source.between(recipe["amount"]) * source.sign()))


def slope(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Uneven light: brightness rising in one direction by `amount` from end to end."""
    rows, columns = canvas.shape
    x, y = direction(source.uniform())
    amount = source.between(recipe["amount"])
    down = (np.arange(rows, dtype=np.float32) * (y * amount / rows))[:, None]
    right = np.arange(columns, dtype=np.float32) * (x * amount / columns)
    canvas.scale(down + right - ((x + y) * amount / 2))


def round_bar(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """A pipe: brightest along one line, falling to both sides like a lit cylinder, with a sheen."""
    columns = canvas.shape[1]
    centre = columns * source.between(recipe["centre"])
    radius = columns * source.between(recipe["radius"])
    place = (np.arange(columns, dtype=np.float32) - centre) * (1 / radius)
    facing = np.sqrt(np.clip(1 - place * place, 0, 1))
    sheen = np.clip(1 - np.abs(place) * (1 / source.between(recipe["sheen_width"])), 0, 1)
    light = facing + smooth(sheen) * source.between(recipe["sheen"])
    canvas.gray *= (light + 0.12)[None, :]
    edge = np.flatnonzero(facing > 0)
    canvas.span = (int(edge[0]), int(edge[-1]) + 1)


def strip_edge(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """The strip ends inside the picture: dark background on one side."""
    columns = canvas.shape[1]
    width = int(columns * source.between(recipe["share"]))
    low, high = (width, columns) if source.chance(0.5) else (0, columns - width)
    dark = source.between(recipe["dark"])
    outside = np.ones(columns, bool)
    outside[low:high] = False
    haze = np.abs(lattice_noise(source, (1, columns), (1, columns / 6), 2)) * 0.03
    canvas.gray[:, outside] = dark + haze[:, outside]
    canvas.span = (low, high)


def heat(canvas: Canvas, source: Source, recipe: Recipe) -> None:
    """Glow of a hot billet: warm light through the scale, in clouds, stronger to one side."""
    rows, columns = canvas.shape
    cloud = lattice_noise(source, canvas.shape, (rows / 3, columns / 3), 3) * 0.3
    x, y = direction(source.uniform())
    down = (np.arange(rows, dtype=np.float32) * (y / rows))[:, None]
    right = np.arange(columns, dtype=np.float32) * (x / columns)
    amount = source.between(recipe["amount"])
    canvas.glow = np.clip((cloud + down + right + (0.4 - (x + y) / 2)) * amount, 0, 1)


KINDS: dict[str, Callable[[Canvas, Source, Recipe], None]] = {
    "bands": bands,
    "flakes": flakes,
    "grain": grain,
    "hairs": hairs,
    "heat": heat,
    "lines": lines,
    "mottle": mottle,
    "relief": relief,
    "round_bar": round_bar,
    "slant": slant,
    "slope": slope,
    "smudges": smudges,
    "specks": specks,
    "strip_edge": strip_edge,
}
"""Layer kinds by the name recipes use."""
