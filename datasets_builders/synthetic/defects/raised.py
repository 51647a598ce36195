"""Defects with a relief of their own: slag, flaps, pits, wrinkles. The light decides which side is bright."""

from __future__ import annotations

import numpy as np

from datasets_builders.synthetic.marks import Frame, Mark, Site
from datasets_builders.synthetic.numerics import Field, Wander, direction, ramp, smooth

ONE = np.float32(1)


def _lit(site: Site, height: Field) -> Field:
    return site.surface.lit(height)


def _oval(frame: Frame, half: tuple[float, float], at: tuple[float, float] = (0.0, 0.0)) -> Field:
    """Returns the distance from the centre in units of the ellipse: 0 at the centre, 1 on the border."""
    u = (frame.u - np.float32(at[0])) * np.float32(1 / half[0])
    v = (frame.v - np.float32(at[1])) * np.float32(1 / half[1])
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
        inside = ONE - _oval(frame, (half[0] * part, half[1] * part), shift) + ragged * np.float32(0.22)
        body = np.maximum(body, inside)
        dome = np.sqrt(np.clip(inside * (np.float32(2) - inside), np.float32(0), ONE))
        height = np.maximum(height, dome * np.float32(part))
    cover = ramp(body * np.float32(half[1]), 1.4)
    relief = np.clip(_lit(site, height * np.float32(half[1] * 0.55)), np.float32(-1), np.float32(1))
    rim = smooth(np.clip(ONE - np.abs(body) * np.float32(half[1] / 2.5), np.float32(0), ONE))
    grit = site.noise(frame, 2.5, 2)
    tone = np.float32(source.uniform(-0.5, 0.45))
    change = relief * np.float32(1.1) + tone - rim * np.float32(0.55) + grit * np.float32(0.22)
    return frame.mark(cover, np.clip(change * np.float32(strength), np.float32(-0.88), np.float32(1.5)))


def slag_skin(site: Site) -> Mark | None:
    """A crust of slag: an irregular patch of rough, mostly darker skin with a raised, shaded border."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.4, 0.9))
    frame = site.frame(half[0] * 1.25, half[1] * 1.25, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = ONE - _oval(frame, half) + site.noise(frame, length / 4, 4) * np.float32(source.uniform(0.3, 0.5))
    step = ramp(body - np.float32(0.02), 0.14)
    crust = site.noise(frame, source.uniform(4, 9), 3)
    relief = np.clip(
        _lit(site, step * np.float32(2.2) + crust * np.float32(2.4)), np.float32(-1), np.float32(1)
    )
    tone = np.float32(source.uniform(-0.75, -0.1))
    cracks = smooth(np.clip(ONE - np.abs(crust) * np.float32(6), np.float32(0), ONE)) * np.float32(-0.45)
    change = relief * np.float32(0.9) + tone + cracks + site.noise(frame, length / 5, 2) * np.float32(0.2)
    return frame.mark(step, np.clip(change * np.float32(strength), np.float32(-0.85), np.float32(1.0)))


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
    share = frame.u * np.float32(1 / half[0])
    # The tongue is widest before its tip (positive u) and narrows to the root.
    width = np.float32(half[1]) * (
        np.float32(0.45) + np.float32(0.55) * smooth(np.clip((share + ONE) * np.float32(0.5), 0, 1))
    )
    ragged = site.noise(frame, max(4.0, length / 6), 3)
    tip = np.sqrt(np.clip(ONE - np.clip(share, 0, 1) * np.clip(share, 0, 1), np.float32(0), ONE))
    edge = width * tip - np.abs(frame.v) + ragged * np.float32(half[1] * 0.22)
    root = np.clip((share + ONE) * np.float32(2.2), np.float32(0), ONE)
    cover = ramp(edge, 1.6) * ramp(np.float32(half[0]) - np.abs(frame.u), 1.5)
    lift = smooth(np.clip((share + np.float32(0.4)) * np.float32(0.8), np.float32(0), ONE))
    border = (
        smooth(np.clip(ONE - np.abs(edge - np.float32(1.6)) * np.float32(1 / 2.6), np.float32(0), ONE)) * lift
    )
    relief = np.clip(_lit(site, lift * cover * np.float32(half[1] * 0.5)), np.float32(-1), np.float32(1))
    skin = np.float32(source.uniform(0.15, 0.5) * source.sign()) + ragged * np.float32(0.25)
    change = (skin + relief * np.float32(0.9) - border * np.float32(0.95)) * (
        np.float32(0.3) + np.float32(0.7) * root
    )
    return frame.mark(cover, np.clip(change * np.float32(strength), np.float32(-0.9), np.float32(1.2)))


def rolled_pit(site: Site) -> Mark | None:
    """A pit or bulge pressed in by a roll: a small dent lit on one side, with a rough floor."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.5, 1.0))
    frame = site.frame(half[0] * 1.3 + 1, half[1] * 1.3 + 1, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = (
        ONE
        - _oval(frame, half)
        + site.noise(frame, max(3.0, length / 3), 3) * np.float32(source.uniform(0.15, 0.35))
    )
    cover = ramp(body * np.float32(half[1]), 1.8)
    depth = smooth(np.clip(body * np.float32(1.4), np.float32(0), ONE))
    sign = -1 if source.chance(0.7) else 1
    relief = np.clip(_lit(site, depth * np.float32(sign * half[1] * 0.6)), np.float32(-1), np.float32(1))
    floor = site.noise(frame, 2.5, 2) * np.float32(0.35) - np.float32(0.3)
    change = relief * np.float32(1.2) + floor * (np.float32(0.4) + np.float32(0.6) * depth)
    return frame.mark(cover, np.clip(change * np.float32(strength), np.float32(-0.8), np.float32(1.0)))


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
    sway = Wander(source, length, source.uniform(12, 30), 3)(frame.u) * np.float32(period * 0.55)
    sway += site.noise(frame, period * 2.2, 2) * np.float32(period * 0.35)
    place = (frame.v + sway) * np.float32(1 / period)
    share = place - np.floor(place)
    tilt = direction(source.uniform(0.02, 0.06))[1]
    crest = np.abs(share * np.float32(2) - ONE) * np.float32(2) - ONE
    side = np.float32(1.0 if frame.light[1] > 0 else -1.0)
    saw = (share - np.float32(0.5)) * side * np.float32(1 + tilt)
    u, v = frame.u * np.float32(1 / half[0]), frame.v * np.float32(1 / half[1])
    body = ONE - (u * u + v * v * np.abs(v)) + site.noise(frame, length / 5, 2) * np.float32(0.22)
    cover = ramp(body - np.float32(0.08), 0.25)
    change = (crest * np.float32(0.55) + saw * np.float32(0.9)) * np.float32(strength)
    return frame.mark(cover, np.clip(change, np.float32(-0.75), np.float32(1.0)))
