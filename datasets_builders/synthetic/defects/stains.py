"""Flat defects that change the colour of the metal, not its shape: water, oil, silk spots, inclusions."""

from __future__ import annotations

import numpy as np

from datasets_builders.synthetic.marks import Frame, Mark, Site
from datasets_builders.synthetic.numerics import Field, Wander, ramp, smooth

ONE = np.float32(1)


def _blob(
    site: Site, frame: Frame, half: tuple[float, float], ragged: float, cell: float, octaves: int = 3
) -> Field:
    """Returns the depth inside an irregular ellipse: 1 at the centre, 0 at the border, less outside."""
    u, v = frame.u * np.float32(1 / half[0]), frame.v * np.float32(1 / half[1])
    return ONE - np.sqrt(u * u + v * v) + site.noise(frame, cell, octaves) * np.float32(ragged)


def water_slag_mark(site: Site) -> Mark | None:
    """Where water carried slag: a broad faint stain with a darker rim and streaks along the casting."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.35, 0.8))
    frame = site.frame(half[0] * 1.3, half[1] * 1.3, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = _blob(site, frame, half, source.uniform(0.2, 0.4), length / 4, 4)
    cover = ramp(body - np.float32(0.03), 0.09)
    rim = smooth(np.clip(ONE - np.abs(body - np.float32(0.08)) * np.float32(9), np.float32(0), ONE))
    runs = Wander(source, half[1] * 2.6, source.uniform(2.5, 6), 2)(frame.v)
    inner = np.float32(source.uniform(0.25, 0.6) * (1 if source.chance(0.35) else -1))
    cloud = site.noise(frame, length / 6, 3)
    change = inner * (ONE + np.float32(0.3) * runs + np.float32(0.35) * cloud) - rim * np.float32(0.75)
    return frame.mark(cover, np.clip(change * np.float32(strength), np.float32(-0.7), np.float32(0.7)))


def water_spot(site: Site) -> Mark | None:
    """A dried water drop or run: faint, paler or darker than the strip, with a thin drying rim."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.35, 0.95))
    frame = site.frame(half[0] * 1.25, half[1] * 1.25, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = _blob(site, frame, half, source.uniform(0.08, 0.28), length / 3, 3)
    cover = ramp(body, 0.08)
    rim = smooth(np.clip(ONE - np.abs(body - np.float32(0.06)) * np.float32(12), np.float32(0), ONE))
    tone = np.float32(source.sign())
    cloud = site.noise(frame, length / 5, 2)
    change = tone * np.float32(0.55) * (ONE + np.float32(0.3) * cloud) - rim * np.float32(0.8)
    return frame.mark(cover, np.clip(change * np.float32(strength), np.float32(-0.7), np.float32(0.8)))


def oil_spot(site: Site) -> Mark | None:
    """Oil: a smooth dark spot, soft at the border, sometimes with a tail along the rolling direction."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.4, 1.0))
    frame = site.frame(half[0] * 1.25, half[1] * 1.25, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    body = _blob(site, frame, half, source.uniform(0.05, 0.22), max(3.0, length / 2.5), 2)
    if source.chance(0.35):
        # A tail: the border retreats less quickly towards one end.
        body += np.clip(frame.u * np.float32(1 / half[0]), 0, 1) * np.float32(0.25) - np.abs(
            frame.v * np.float32(0.3 / half[1])
        )
    cover = ramp(body - np.float32(0.04), 0.3)
    depth = np.float32(0.6) + np.float32(0.4) * smooth(np.clip(body * np.float32(2.5), np.float32(0), ONE))
    return frame.mark(cover, np.clip(depth * np.float32(-strength), np.float32(-0.88), np.float32(0)))


def silk_spot(site: Site) -> Mark | None:
    """Silk: a broad plaque of wave-like streaks along the rolling direction, with no sharp border."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.25, 0.6))
    frame = site.frame(half[0] * 1.1, half[1] * 1.1, site.turn())
    if frame is None:
        return None
    strength = site.strength()
    u, v = frame.u * np.float32(1 / half[0]), frame.v * np.float32(1 / half[1])
    body = ONE - (u * u + v * v) + site.noise(frame, length / 4, 2) * np.float32(0.15)
    cover = ramp(body - np.float32(0.05), 0.4)
    sway = Wander(source, length * 1.1, source.uniform(20, 45), 2)(frame.u) * np.float32(source.uniform(1, 4))
    threads = Wander(source, half[1] * 2.6 + 16, source.uniform(1.5, 4.0), 2)(frame.v + sway)
    tone = np.float32(source.sign())
    change = (threads + tone * np.float32(0.6)) * np.float32(strength)
    return frame.mark(cover, np.clip(change, np.float32(-0.6), np.float32(0.6)))


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
        u = (frame.u - np.float32(middle)) * np.float32(1 / part)
        v = (frame.v - np.float32(source.uniform(-0.6, 0.6) * width)) * np.float32(
            1 / (width * source.uniform(0.5, 1.0))
        )
        body = ONE - np.sqrt(u * u + v * v) + ragged * np.float32(0.3)
        cover = np.maximum(cover, ramp(body * np.float32(width), 1.3))
    depth = np.float32(0.75) + np.float32(0.35) * ragged
    return frame.mark(cover, np.clip(depth * np.float32(-strength), np.float32(-0.9), np.float32(-0.02)))
