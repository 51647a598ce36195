"""Defects drawn along a line: scratch, crack, folds, creases, weld lines."""

from __future__ import annotations

import numpy as np

from datasets_builders.synthetic.marks import Mark, Site
from datasets_builders.synthetic.numerics import Field, Wander, ramp, smooth


def _ends(u: Field, length: float, taper: float) -> Field:
    """Returns 1 along the middle of a line, falling to 0 over `taper` pixels at both ends."""
    return np.clip(((length / 2) - np.abs(u)) * (1 / taper), 0, 1)


def _hump(distance: Field, half_width: float) -> Field:
    """Returns a smooth bump of height 1 at distance 0, gone at `half_width`."""
    return smooth(np.clip(1 - np.abs(distance) * (1 / half_width), 0, 1))


def scratch(site: Site) -> Mark | None:
    """A scratch: bared bright metal (or a dark groove), a shaded lip, broken along its length."""
    source, length, width = site.source, site.size(), site.source.between(site.settings["width"])
    twins = source.pick({0: 6, 1: 3, 2: 1})
    gap = source.uniform(2.5, 6.0)
    bow = length * source.uniform(0.0, 0.035)
    half_width = 2.2 + width + bow + (gap * twins)
    frame = site.frame(length / 2, half_width, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    path = Wander(source, length, length / 2, 2)(frame.u) * (bow * 0.6)
    path += (frame.u * (2 / length)) * (frame.u * (2 / length)) * (bow * 0.4)
    wear = np.clip(
        Wander(source, length, source.uniform(6, 24), 3)(frame.u) * 0.6 + 0.75,
        0.22,
        1,
    )
    tone = 1 if source.chance(site.settings.get("bright", 0.65)) else -1
    lip_side = 1.0 if frame.light[1] * tone < 0 else -1.0
    cover = np.zeros(frame.shape, np.float32)
    change = np.zeros(frame.shape, np.float32)
    for twin in range(twins + 1):
        share = 1.0 if twin == 0 else source.uniform(0.4, 0.8)
        off = frame.v - path - ((twin - twins / 2) * gap)
        shifted = frame.u - (0.0 if twin == 0 else source.uniform(-0.15, 0.15) * length)
        ends = _ends(shifted, length * share, min(14.0, length * share * 0.2))
        press = np.clip(Wander(source, length, length / 4, 3)(frame.u) * 0.4 + 0.8, 0.4, 1.2)
        thick = (0.3 + width / 2) * (0.4 + 0.6 * ends) * press
        cover = np.maximum(cover, ramp(thick + 1.0 - np.abs(off), 1.6) * np.minimum(ends * 4, 1))
        core = ramp(thick - np.abs(off), 1.2)
        lip = _hump(off - lip_side * (thick + 0.8), 1.8)
        change += (core * wear - lip * 0.35 * wear) * (tone * strength)
    return frame.mark(cover, np.clip(change, -0.85, 1.6))


def longitudinal_crack(site: Site) -> Mark | None:
    """A crack along the casting direction: jagged, dark, of changing width, a bright lip to the light."""
    source, length, width = site.source, site.size(), site.source.between(site.settings["width"])
    sway = source.uniform(2.5, 8.0)
    frame = site.frame(length / 2, sway + width + 4, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    path = Wander(source, length, source.uniform(24, 50), 3)(frame.u) * sway
    path += Wander(source, length, source.uniform(3, 7), 2)(frame.u) * source.uniform(0.5, 1.2)
    ends = _ends(frame.u, length, length * 0.35)
    open_ = np.clip(Wander(source, length, 14, 3)(frame.u) * 0.55 + 0.7, 0.15, 1)
    thick = (width / 2) * open_ * (0.3 + 0.7 * ends)
    off = frame.v - path
    core = ramp(thick - np.abs(off), 1.3)
    fork_at = source.uniform(-0.3, 0.2) * length
    beyond = np.clip(frame.u - fork_at, 0, length * 0.3)
    if source.chance(0.35):
        fork = off - beyond * (source.uniform(0.12, 0.3) * source.sign())
        taken = (beyond > 0) & (beyond < (length * 0.29)) & (np.abs(frame.v) < (sway + width + 3))
        core = np.maximum(core, ramp(thick * 0.6 - np.abs(fork), 1.2) * taken)
    side = 1.0 if frame.light[1] < 0 else -1.0
    lip = _hump(off - side * (thick + 1.2), 2.0) * ends
    halo = _hump(off, 2.5 + width) * 0.25
    cover = np.maximum(ramp(thick + 0.9 - np.abs(off), 1.4), core) * np.minimum(ends * 5, 1)
    change = (lip * 0.45 * (1 - core) - core - halo * (1 - core)) * strength
    return frame.mark(cover, np.clip(change, -0.92, 0.8))


def external_fold(site: Site) -> Mark | None:
    """A lap of metal folded over: a dark seam, a shaded slope beside it, a bright edge beyond."""
    source, length, width = site.source, site.size(), site.source.between(site.settings["width"])
    sway = length * source.uniform(0.02, 0.07)
    frame = site.frame(length / 2, sway + width + 3, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    path = Wander(source, length, length / 2.2, 3)(frame.u) * sway
    ends = _ends(frame.u, length, length * 0.2)
    thick = width * ends * (0.75 + 0.35 * Wander(source, length, 12, 2)(frame.u))
    lap = source.sign()
    off: Field = (frame.v - path) * lap
    inside = ramp(off + 0.8, 1.4) * ramp(thick - off, 2.0)
    slope_ = np.clip(1 - off / np.maximum(thick, 1), 0, 1)
    seam = _hump(off, 1.9)
    far: Field = thick * 0.85
    edge = _hump(off - far, 2.2)
    bright = 0.5 + 0.4 * abs(frame.light[1])
    change = (edge * bright - seam * 0.9 - slope_ * 0.4) * strength
    cover = np.maximum(inside, seam) * np.minimum(ends * 4, 1)
    return frame.mark(cover, np.clip(change, -0.85, 1.0))


def crease(site: Site) -> Mark | None:
    """A crease: a thin dark fold line with kinks and a soft bright and dark side."""
    source, length, width = site.source, site.size(), site.source.between(site.settings["width"])
    sway = source.uniform(1.0, 4.0)
    frame = site.frame(length / 2, sway + width + 5, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    kinks = Wander(source, length, source.uniform(18, 40), 1)(frame.u)
    path = kinks * sway
    ends = _ends(frame.u, length, length * 0.3)
    off = frame.v - path
    live = np.clip(Wander(source, length, 16, 2)(frame.u) * 0.5 + 0.8, 0.25, 1)
    core = ramp((width / 2) * live - np.abs(off), 1.3)
    side = 1.0 if frame.light[1] < 0 else -1.0
    slope_ = _hump(off - side * (width / 2 + 1.5), 3.0) - _hump(off + side * (width / 2 + 1.5), 3.0)
    cover = ramp((width / 2 + 1.6) - np.abs(off), 1.8) * np.minimum(ends * 3, 1)
    change = (slope_ * 0.4 * (1 - core) - core * live) * strength
    return frame.mark(cover, np.clip(change, -0.85, 0.6))


def welding_line(site: Site) -> Mark | None:
    """The weld between two coils: a straight band across the whole strip, bright and dark side by side."""
    source, width = site.source, site.source.between(site.settings["width"])
    left, top, right, bottom = site.surface.metal
    wide, tall = right - left, bottom - top
    place = source.uniform(0.08, 0.92)
    if site.surface.vertical:
        across, centre, reach = wide, (left + wide / 2, top + tall * place), (wide / 2 + 1, width + 8)
    else:
        across, centre, reach = tall, (left + wide * place, top + tall / 2), (width + 8, tall / 2 + 1)
    frame = site.frame_at(centre, reach, site.rolling + 0.25 + source.uniform(-0.004, 0.004))
    strength = site.strength()
    path = Wander(source, across, across / 2, 3)(frame.u) * source.uniform(0.2, 1.2)
    off = frame.v - path
    bead = Wander(source, across, source.uniform(3, 7), 2)(frame.u)
    half = width / 2
    groove = width * source.uniform(-0.35, 0.35)
    dark = _hump(off - groove, 1.6 + width * 0.2)
    bright = _hump(off + groove, 1.6 + width * 0.25) * (0.7 + 0.4 * bead)
    body = ramp(half - np.abs(off), 1.6)
    cover = np.maximum(body, ramp(2.6 - np.abs(off), 1.2))
    tone = source.uniform(-0.35, 0.35)
    live = np.clip(Wander(source, across, across / 4, 2)(frame.u) * 0.5 + 0.85, 0.35, 1)
    change = (bright * 0.7 - dark + tone) * live * strength
    return frame.mark(cover, np.clip(change, -0.85, 0.9))


def waist_folding(site: Site) -> Mark | None:
    """Waist folds: a few bright, roughly parallel, curved ripples across the rolling direction."""
    source, length = site.source, site.size()
    count = source.integer(1, 3)
    pitch = source.uniform(5, 13)
    bow = length * source.uniform(0.05, 0.16)
    half = (count - 1) * pitch / 2 + bow + 5
    frame = site.frame(length / 2 * 1.1, half, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    share = frame.u * (2 / length)
    arc = (share * share - 0.4) * (bow * source.sign())
    cover = np.zeros(frame.shape, np.float32)
    change = np.zeros(frame.shape, np.float32)
    side = 1.0 if frame.light[1] > 0 else -1.0
    for fold in range(count):
        part = length * (1.0 if fold == 0 else source.uniform(0.5, 0.95))
        shifted = frame.u - (source.uniform(-0.5, 0.5) * (length - part))
        ends = _ends(shifted, part, part * 0.35)
        path = arc + Wander(source, length, length / 3, 3)(frame.u) * 2.5
        off = frame.v - path - ((fold - (count - 1) / 2) * pitch)
        thick = source.uniform(1.0, 2.2)
        crest = _hump(off, thick + 1.4) * ends
        shadow = _hump(off + side * (thick + 1.2), thick + 1.6) * ends
        cover = np.maximum(cover, ramp((thick + 1.4) - np.abs(off + side), 1.6) * np.minimum(ends * 4, 1))
        change += (crest - shadow * 0.55) * strength
    return frame.mark(cover, np.clip(change, -0.7, 1.0))
