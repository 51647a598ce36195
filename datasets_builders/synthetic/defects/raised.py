"""Defects with a relief of their own: slag, flaps, pits, wrinkles. The light decides which side is bright."""

from __future__ import annotations

import numpy as np

from datasets_builders.synthetic.marks import Frame, Mark, Site
from datasets_builders.synthetic.numerics import Field, Wander, ramp, smooth


def _oval(frame: Frame, half: tuple[float, float], at: tuple[float, float] = (0.0, 0.0)) -> Field:
    """Returns the distance from the centre in units of the ellipse: 0 at the centre, 1 on the border."""
    u = (frame.u - at[0]) * (1 / half[0])
    v = (frame.v - at[1]) * (1 / half[1])
    return np.sqrt(u * u + v * v)


def weld_slag(site: Site) -> Mark | None:
    """Spatter that froze on the billet: one to a few round beads, bright to the light, in a dark rim."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.45, 1.0))
    frame = site.frame(half[0] * 1.2 + 2, half[1] * 1.2 + 2, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    ragged = site.noise(frame, max(3.0, length / 4), 3)
    height: Field = np.zeros(frame.shape, np.float32)
    body: Field = np.full(frame.shape, -1.0, np.float32)
    beads = source.integer(1, 4)
    for bead in range(beads):
        part = 1.0 if beads == 1 else source.uniform(0.45, 0.75)
        reach = 0.0 if bead == 0 else 1 - part
        shift = source.uniform(-reach, reach) * half[0], source.uniform(-reach, reach) * half[1]
        inside = 1 - _oval(frame, (half[0] * part, half[1] * part), shift) + ragged * 0.22
        body = np.maximum(body, inside)
        dome = np.sqrt(np.clip(inside * (2 - inside), 0, 1))
        height = np.maximum(height, dome * part)
    cover = ramp(body * half[1], 1.4)
    relief = np.clip(site.surface.lit(height * (half[1] * 0.55)), -1, 1)
    rim = smooth(np.clip(1 - np.abs(body) * (half[1] / 2.5), 0, 1))
    grit = site.noise(frame, 2.5, 2)
    tone = source.uniform(-0.5, 0.45)
    change = relief * 1.1 + tone - rim * 0.55 + grit * 0.22
    return frame.mark(cover, np.clip(change * strength, -0.88, 1.5))


def slag_skin(site: Site) -> Mark | None:
    """A crust of slag: an irregular patch of rough, mostly darker skin with a raised, shaded border."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.4, 0.9))
    frame = site.frame(half[0] * 1.25, half[1] * 1.25, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = site.blob(frame, half, source.uniform(0.3, 0.5), length / 4, 4)
    step = ramp(body - 0.02, 0.14)
    grit = source.uniform(4, 9)
    crust = site.noise(frame, grit, 3)
    rough = grit * source.uniform(0.12, 0.24)
    relief = np.clip(site.surface.lit(step * 1.8 + crust * rough), -1, 1)
    tone = source.uniform(-0.75, -0.1)
    cracks = smooth(np.clip(1 - np.abs(crust) * 6, 0, 1)) * -0.45
    change = relief * 0.9 + tone + cracks + site.noise(frame, length / 5, 2) * 0.2
    return frame.mark(step, np.clip(change * strength, -0.85, 1.0))


def warp(site: Site) -> Mark | None:
    """A sliver of skin that lifted: a tongue with a bright tip, a dark gap under it, fading at its root."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.3, 0.65))
    frame = site.frame(
        half[0] * 1.1 + 3, half[1] * 1.15 + 3, site.turn() + (0.5 if source.chance(0.5) else 0.0)
    )
    if frame is None:
        return None
    strength = site.strength()
    share = frame.u * (1 / half[0])
    # The tongue is widest before its tip (positive u) and narrows to the root.
    width = half[1] * (0.45 + 0.55 * smooth(np.clip((share + 1) * 0.5, 0, 1)))
    ragged = site.noise(frame, max(4.0, length / 6), 3)
    tip = np.sqrt(np.clip(1 - np.clip(share, 0, 1) * np.clip(share, 0, 1), 0, 1))
    edge = width * tip - np.abs(frame.v) + ragged * (half[1] * 0.22)
    root = np.clip((share + 1) * 2.2, 0, 1)
    cover = ramp(edge, 1.6) * ramp(half[0] - np.abs(frame.u), 1.5)
    lift = smooth(np.clip((share + 0.4) * 0.8, 0, 1))
    border = smooth(np.clip(1 - np.abs(edge - 1.6) * (1 / 2.6), 0, 1)) * lift
    relief = np.clip(site.surface.lit(lift * cover * (half[1] * 0.5)), -1, 1)
    skin = (source.uniform(0.15, 0.5) * source.sign()) + ragged * 0.25
    change = (skin + relief * 0.9 - border * 0.95) * (0.3 + 0.7 * root)
    return frame.mark(cover, np.clip(change * strength, -0.9, 1.2))


def rolled_pit(site: Site) -> Mark | None:
    """A pit or bulge pressed in by a roll: a small dent lit on one side, with a rough floor."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.5, 1.0))
    frame = site.frame(half[0] * 1.3 + 1, half[1] * 1.3 + 1, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = site.blob(frame, half, source.uniform(0.15, 0.35), max(3.0, length / 3))
    cover = ramp(body * half[1], 1.8)
    depth = smooth(np.clip(body * 1.4, 0, 1))
    sign = -1 if source.chance(0.7) else 1
    relief = np.clip(site.surface.lit(depth * (sign * half[1] * 0.6)), -1, 1)
    floor = site.noise(frame, 2.5, 2) * 0.35 - 0.3
    change = relief * 1.2 + floor * (0.4 + 0.6 * depth)
    return frame.mark(cover, np.clip(change * strength, -0.8, 1.0))


def wrinkle(site: Site) -> Mark | None:
    """Wrinkles: a field of wavy, roughly parallel ridges, each lit on one side, fading at the ends."""
    source, length = site.source, site.size()
    period = source.between(site.settings["period"])
    ridges = source.integer(2, 5)
    half = (length / 2, period * ridges / 2 + 2)
    frame = site.frame(half[0] * 1.05, half[1] * 1.2, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    sway = Wander(source, length, source.uniform(12, 30), 3)(frame.u) * (period * 0.55)
    sway += site.noise(frame, period * 2.2, 2) * (period * 0.35)
    place = (frame.v + sway) * (1 / period)
    share = place - np.floor(place)
    crest = np.abs(share * 2 - 1) * 2 - 1
    side = 1.0 if frame.light[1] > 0 else -1.0
    saw = (share - 0.5) * side * 1.2
    u, v = frame.u * (1 / half[0]), frame.v * (1 / half[1])
    body = 1 - (u * u + v * v * np.abs(v)) + site.noise(frame, length / 5, 2) * 0.22
    cover = ramp(body - 0.08, 0.25)
    live = np.clip(site.noise(frame, length / 3, 2) * 0.6 + 0.8, 0.35, 1.2)
    change = (crest * 0.55 + saw * 0.9) * live * strength
    return frame.mark(cover, np.clip(change, -0.75, 1.0))
