"""What every defect has in common: where it lies, how it changes the metal, and its exact mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_builders.synthetic.numerics import Field, Source, cloud_noise, direction
from datasets_builders.synthetic.surfaces import Surface

MASK_COVER = 0.3
"""A pixel belongs to a defect where the defect covers it by at least this share."""
VISIBLE = 2.5 / 255
"""Inside its mask a defect changes the surface by at least this much (brightness in [0, 1])."""
OUTSIDE_SHARE = 0.3
"""Outside its mask a defect changes the surface by at most this share of its strongest change."""

TYPICAL_ROUGHNESS = 0.125
"""`Surface.roughness` on which a defect shows with the contrast its config states."""


@dataclass(frozen=True)
class Mark:
    """One defect as it changes a surface.

    Attributes:
        top: First row of the patch.
        left: First column of the patch.
        delta: Change of brightness, float32 (rows, columns) of the patch.
        mask: Extent, bool (rows, columns) of the patch.
    """

    top: int
    left: int
    delta: Field
    mask: NDArray[np.bool_]

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the patch covers."""
        rows, columns = self.mask.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)

    def box(self) -> tuple[int, int, int, int] | None:
        """Returns (left, top, right, bottom) around the mask in the image, end exclusive; None if empty."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not rows.size:
            return None
        return (
            self.left + int(columns[0]),
            self.top + int(rows[0]),
            self.left + int(columns[-1]) + 1,
            self.top + int(rows[-1]) + 1,
        )


@dataclass(frozen=True)
class Frame:
    """A defect's own coordinates on the image.

    Attributes:
        top: First row of the window.
        left: First column of the window.
        u: Pixels along the defect from its centre, float32 (rows, columns).
        v: Pixels across it, float32 (rows, columns).
        base: The surface before this defect, float32 (rows, columns).
        light: Light direction as (along u, along v), unit length.
    """

    top: int
    left: int
    u: Field
    v: Field
    base: Field
    light: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the window."""
        return self.base.shape[0], self.base.shape[1]

    def mark(self, cover: Field, change: Field) -> Mark:
        """Makes the mark: brightness times (1 + change) where covered.

        The mask is where `cover` reaches `MASK_COVER`. Inside it the change is at least `VISIBLE`, outside at
        most `OUTSIDE_SHARE` of the strongest change.
        """
        mask = cover >= MASK_COVER
        delta = self.base * change * cover
        visible = VISIBLE
        least = np.where(delta < 0, np.minimum(delta, -visible), np.maximum(delta, visible))
        most = OUTSIDE_SHARE * (np.abs(least[mask]).max() if mask.any() else 0)
        return Mark(self.top, self.left, np.where(mask, least, np.clip(delta, -most, most)), mask)


@dataclass(frozen=True)
class Site:
    """Where a defect is to go.

    Attributes:
        surface: The metal, with the defects that are already on it.
        source: Random numbers of this defect.
        settings: The class's parameters from the config.
        contrast: The config's overall contrast.
    """

    surface: Surface
    source: Source
    settings: Mapping[str, Any]
    contrast: float

    @property
    def rolling(self) -> float:
        """Angle of the rolling direction, in turns from the x axis."""
        return 0.25 if self.surface.vertical else 0.0

    def strength(self) -> float:
        """Draws the relative change of brightness for this defect.

        It grows with the texture's contrast: on rough metal only what stands out is noticed, and labelled.
        """
        drawn = self.source.between(self.settings["contrast"], towards_low=True)
        return drawn * self.contrast * (0.5 + 0.5 * self.surface.roughness / TYPICAL_ROUGHNESS)

    def depth(self) -> float:
        """Draws how much of the way to the dark behind it a hole goes, in [0, 1]."""
        return min(1.0, self.source.between(self.settings["contrast"]) * self.contrast)

    def size(self, key: str = "length") -> float:
        """Draws a size in pixels, small ones more often."""
        return self.source.between(self.settings[key], towards_low=True)

    def turn(self) -> float:
        """Draws the defect's angle in turns: the rolling direction + `angle`, up to `spread` either way."""
        spread = self.settings.get("spread", 0.0)
        return self.rolling + self.settings.get("angle", 0.0) + self.source.uniform(-spread, spread)

    def frame(self, half_length: float, half_width: float, turn: float) -> Frame | None:
        """Finds a random place on the metal where a rotated rectangle fits whole.

        Returns:
            Its coordinates, or None when it is too large for the metal.
        """
        x, y = direction(turn)
        reach_x = abs(x) * half_length + abs(y) * half_width + 2
        reach_y = abs(y) * half_length + abs(x) * half_width + 2
        left, top, right, bottom = self.surface.metal
        if right - left < 2 * reach_x or bottom - top < 2 * reach_y:
            return None
        centre = (
            self.source.uniform(left + reach_x, right - reach_x),
            self.source.uniform(top + reach_y, bottom - reach_y),
        )
        return self.frame_at(centre, (reach_x, reach_y), turn)

    def frame_at(self, centre: tuple[float, float], reach: tuple[float, float], turn: float) -> Frame:
        """Returns the coordinates of a rectangle centred at (x, y), cut where the metal ends."""
        first_x, first_y, last_x, last_y = self.surface.metal
        left, right = max(first_x, int(centre[0] - reach[0])), min(last_x, int(centre[0] + reach[0]) + 1)
        top, bottom = max(first_y, int(centre[1] - reach[1])), min(last_y, int(centre[1] + reach[1]) + 1)
        x, y = direction(turn)
        across = np.arange(left, right, dtype=np.float32) - centre[0]
        down = (np.arange(top, bottom, dtype=np.float32) - centre[1])[:, None]
        light = self.surface.light
        return Frame(
            top=top,
            left=left,
            u=across * x + down * y,
            v=down * x - across * y,
            base=self.surface.gray[top:bottom, left:right],
            light=(light[0] * x + light[1] * y, light[1] * x - light[0] * y),
        )

    def blob(
        self, frame: Frame, half: tuple[float, float], ragged: float, cell: float, octaves: int = 3
    ) -> Field:
        """Makes an irregular ellipse.

        Args:
            frame: Where; it should reach at least 1.25 times as far as the ellipse.
            half: Half axes along and across, in pixels.
            ragged: How far the border strays, as a share of the half axes.
            cell: Size of its lobes in pixels.
            octaves: How many finer layers of lobes.

        Returns:
            Depth (rows, columns): 1 at the centre, 0 at the border, less outside.
        """
        u, v = frame.u * (1 / half[0]), frame.v * (1 / half[1])
        reach = np.sqrt(u * u + v * v)
        depth = 1 - reach + self.noise(frame, cell, octaves) * ragged
        # No lobe reaches the frame, which would cut it off straight.
        return depth - np.maximum(reach - 1.02, 0) * (6 * ragged)

    def noise(self, frame: Frame, cell: float, octaves: int = 1) -> Field:
        """Makes smooth noise in about [-1, 1] over a frame's window."""
        return cloud_noise(self.source, frame.shape, (cell, cell), octaves)
