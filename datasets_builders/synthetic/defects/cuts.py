"""Defects where metal is missing: cutting openings, punched holes, crescent gaps."""

from __future__ import annotations

import numpy as np

from datasets_builders.synthetic.marks import Mark, Site
from datasets_builders.synthetic.numerics import Field, Wander, direction, ramp, smooth
from datasets_builders.synthetic.surfaces import DARKEST, Surface

VOID = 0.05
"""Brightness behind a hole."""


def _to_void(base: Field, share: Field, depth: float, void: float = VOID) -> Field:
    """Returns the relative change that takes the metal towards the dark behind it."""
    return (void / np.maximum(base, DARKEST) - 1) * share * depth


def _beyond(surface: Surface, side: str) -> float:
    """Returns the brightness beyond an edge of the metal, seen in the picture or assumed."""
    if side not in surface.edges:
        return VOID
    left, top, right, bottom = surface.metal
    row, column = {
        "left": (top, left - 1),
        "right": (top, right),
        "top": (top - 1, left),
        "bottom": (bottom, left),
    }[side]
    return float(surface.gray[row, column])


def cutting_opening(site: Site) -> Mark | None:
    """A cut of the torch from the edge inwards: a dark, ragged slot, with a molten lip."""
    source, length, width = site.source, site.size(), site.source.between(site.settings["width"])
    rows, columns = site.surface.gray.shape
    side = source.integer(0, 3)
    inward = (0.0, 0.25, 0.5, 0.75)[side] + source.uniform(-0.06, 0.06)
    along = source.uniform(0.12, 0.88)
    start = (
        (0.0, along * rows),
        (along * columns, 0.0),
        (columns - 1.0, along * rows),
        (along * columns, rows - 1.0),
    )[side]
    x, y = direction(inward)
    # The slot runs through the border, so that its frame starts outside the image.
    centre = start[0] + x * length / 2, start[1] + y * length / 2
    half = length / 2 + 8
    reach = abs(x) * half + abs(y) * (width + 9), abs(y) * half + abs(x) * (width + 9)
    frame = site.frame_at(centre, reach, inward)
    depth = site.depth()
    narrowing = source.uniform(0.0, 0.7)
    share = np.clip(frame.u * (1 / length) + 0.5, 0, 1)
    jag = Wander(source, length + 16, source.uniform(5, 12), 3)
    other = Wander(source, length + 16, source.uniform(5, 12), 3)
    thick = (width / 2) * (1 - share * narrowing)
    bend = Wander(source, length + 16, length / 2, 2)(frame.u) * (width * 0.3)
    off = frame.v - bend
    rough = np.where(off > 0, jag(frame.u), other(frame.u)) * (0.5 + width * 0.12)
    tip = np.clip((length / 2 - frame.u) * (2 / width), 0, 1)
    edge = np.where(tip > 0, (thick + rough) * np.sqrt(tip) - np.abs(off), -9)
    inside = ramp(edge, 1.5)
    lip_shape = smooth(np.clip(1 - np.abs(edge + 1.6) * (1 / 2.4), 0, 1))
    lit = np.sign(off) * frame.light[1]
    lip = lip_shape * (0.25 - lit * 0.45) * depth * ramp(tip, 0.5)
    glow = site.noise(frame, 5, 2) * 0.12
    cover = np.maximum(inside, ramp(edge + 2.2, 1.6))
    change = _to_void(frame.base, inside, depth) + glow * inside + lip * (1 - inside)
    return frame.mark(cover, np.clip(change, -0.95, 1.0))


def punching_hole(site: Site) -> Mark | None:
    """A punched hole: a small dark disk with a thin bright burr towards the light."""
    source, radius = site.source, site.size() / 2
    squash = source.uniform(0.8, 1.0)
    frame = site.frame(radius + 3, radius + 3, source.uniform())
    if frame is None:
        return None
    depth = site.depth()
    u, v = frame.u, frame.v * (1 / squash)
    reach = np.sqrt(u * u + v * v)
    edge = radius - reach + site.noise(frame, 4, 1) * 0.4
    inside = ramp(edge, 1.4)
    facing = (u * frame.light[0] + v * frame.light[1]) / np.maximum(reach, 1)
    burr = smooth(np.clip(1 - np.abs(edge + 0.7) * (1 / 1.7), 0, 1))
    burr = burr * (0.15 - facing * 0.5) * (1 - inside)
    cover = np.maximum(inside, ramp(edge + 1.2, 1.2))
    change = _to_void(frame.base, inside, depth) + burr * depth
    return frame.mark(cover, np.clip(change, -0.95, 0.8))


def crescent_gap(site: Site) -> Mark | None:
    """A crescent cut out of the strip's edge: an arc of the dark beyond, reaching into the metal."""
    source, chord = site.source, site.size()
    surface = site.surface
    sides = surface.edges or (["left", "right"] if surface.vertical else ["top", "bottom"])
    side = sides[source.integer(0, len(sides) - 1)]
    left, top, right, bottom = surface.metal
    low, high = (top, bottom) if side in ("left", "right") else (left, right)
    if high - low < chord + 8:
        return None
    middle = source.uniform(low + chord / 2 + 2, high - chord / 2 - 2)
    border, inward = {
        "left": ((left, middle), 0.0),
        "top": ((middle, top), 0.25),
        "right": ((right - 1, middle), 0.5),
        "bottom": ((middle, bottom - 1), 0.75),
    }[side]
    sagitta = chord * source.uniform(0.14, 0.34)
    radius = (chord * chord / 4 + sagitta * sagitta) / (2 * sagitta)
    reach = sagitta + 5, chord / 2 + 5
    frame = site.frame_at(border, reach if side in ("left", "right") else reach[::-1], inward)
    depth = site.depth()
    # Along u the metal begins at 0; the circle's centre lies outside it.
    from_centre = frame.u - (sagitta - radius)
    edge = radius - np.sqrt(from_centre * from_centre + frame.v * frame.v)
    inside = ramp(edge, 1.4)
    rim = smooth(np.clip(1 - np.abs(edge + 1.0) * (1 / 1.8), 0, 1)) * (1 - inside)
    cover = np.maximum(inside, ramp(edge + 1.2, 1.4))
    change = _to_void(frame.base, inside, depth, _beyond(surface, side)) + rim * source.uniform(0.0, 0.45)
    return frame.mark(cover, np.clip(change, -0.95, 1.0))
