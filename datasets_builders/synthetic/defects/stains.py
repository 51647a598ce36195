"""Flat defects that change the colour of the metal, not its shape: water, oil, silk spots, inclusions."""

from __future__ import annotations

import numpy as np

from datasets_builders.synthetic.marks import Mark, Site
from datasets_builders.synthetic.numerics import Field, Wander, ramp, smooth


def water_slag_mark(site: Site) -> Mark | None:
    """Where water carried slag: a broad faint stain with a darker rim and streaks along the casting."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.35, 0.8))
    frame = site.frame(half[0] * 1.3, half[1] * 1.3, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = site.blob(frame, half, source.uniform(0.2, 0.4), length / 4, 4)
    cover = ramp(body - 0.03, 0.09)
    rim = smooth(np.clip(1 - np.abs(body - 0.08) * 9, 0, 1))
    runs = Wander(source, half[1] * 2.6, source.uniform(2.5, 6), 2)(frame.v)
    inner = source.uniform(0.25, 0.6) * (1 if source.chance(0.35) else -1)
    cloud = site.noise(frame, length / 6, 3)
    change = inner * (1 + 0.3 * runs + 0.35 * cloud) - rim * 0.75
    return frame.mark(cover, np.clip(change * strength, -0.7, 0.7))


def water_spot(site: Site) -> Mark | None:
    """A dried water drop or run: faint, paler or darker than the strip, with a thin drying rim."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.35, 0.95))
    frame = site.frame(half[0] * 1.25, half[1] * 1.25, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = site.blob(frame, half, source.uniform(0.08, 0.28), length / 3, 3)
    cover = ramp(body, 0.08)
    rim = smooth(np.clip(1 - np.abs(body - 0.06) * 12, 0, 1))
    tone = source.sign()
    cloud = site.noise(frame, length / 5, 2)
    change = tone * 0.55 * (1 + 0.3 * cloud) - rim * 0.8
    return frame.mark(cover, np.clip(change * strength, -0.7, 0.8))


def oil_spot(site: Site) -> Mark | None:
    """Oil: a smooth dark spot, soft at the border, sometimes with a tail along the rolling direction."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.4, 1.0))
    frame = site.frame(half[0] * 1.25, half[1] * 1.25, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = site.blob(frame, half, source.uniform(0.05, 0.22), max(3.0, length / 2.5), 2)
    if source.chance(0.35):
        # A tail: the border retreats less quickly towards one end.
        body += np.clip(frame.u * (1 / half[0]), 0, 1) * 0.25 - np.abs(frame.v * (0.3 / half[1]))
    cover = ramp(body - 0.04, 0.3)
    depth = 0.6 + 0.4 * smooth(np.clip(body * 2.5, 0, 1))
    return frame.mark(cover, np.clip(depth * -strength, -0.88, 0))


def silk_spot(site: Site) -> Mark | None:
    """Silk: a broad plaque of wave-like streaks along the rolling direction, with no sharp border."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.25, 0.6))
    frame = site.frame(half[0] * 1.25, half[1] * 1.25, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    u, v = frame.u * (1 / half[0]), frame.v * (1 / half[1])
    body = 1 - (u * u + v * v) + site.noise(frame, length / 4, 2) * 0.25
    cover = ramp(body - 0.1, 0.8)
    sway = Wander(source, length * 1.1, source.uniform(20, 45), 2)(frame.u) * source.uniform(1, 4)
    threads = Wander(source, half[1] * 2.6 + 16, source.uniform(1.5, 4.0), 2)(frame.v + sway)
    tone = source.sign()
    change = (threads + tone * 0.6) * strength
    return frame.mark(cover, np.clip(change, -0.6, 0.6))


def inclusion(site: Site) -> Mark | None:
    """Foreign matter rolled in: one or a few dark slivers in a row along the rolling direction."""
    source, length, width = site.source, site.size(), site.source.between(site.settings["width"])
    frame = site.frame(length / 2 + 2, width + 4, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    ragged = site.noise(frame, 4, 2)
    cover: Field = np.zeros(frame.shape, np.float32)
    for _ in range(source.pick({1: 4, 2: 3, 3: 2, 5: 1})):
        part = length * source.uniform(0.3, 0.9) / 2
        middle = source.uniform(-1, 1) * (length / 2 - part)
        u = (frame.u - middle) * (1 / part)
        v = (frame.v - (source.uniform(-0.6, 0.6) * width)) * (1 / (width * source.uniform(0.5, 1.0)))
        body = 1 - np.sqrt(u * u + v * v) + ragged * 0.3
        cover = np.maximum(cover, ramp(body * width, 1.3))
    depth = 0.75 + 0.35 * ragged
    return frame.mark(cover, np.clip(depth * -strength, -0.9, -0.02))
