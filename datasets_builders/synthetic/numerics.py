"""Numbers that come out the same, bit for bit, on every machine.

This package uses only operations whose result IEEE 754 or integer arithmetic fixes: `+ - * / sqrt`,
comparisons, `floor`, `clip`, gathers and integer sums. Nothing calls a vectorised `sin`, `exp` or `power`
(their last bit depends on the SIMD level), a floating-point sum (its order is free) or a NumPy distribution
(its algorithm may change).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]
"""float32 everywhere: Python numbers beside it do not widen it."""
T = TypeVar("T")

TURN_STEPS = 4096
"""Directions come from a table of this many steps a turn, rounded to 1e-6: no platform's last bit shows."""
_SINES = tuple(round(math.sin(2 * math.pi * step / TURN_STEPS), 6) for step in range(TURN_STEPS))

# Four random bytes added: standard deviation sqrt(4 * (256^2 - 1) / 12), mean 4 * 127.5.
_BYTES_PER_NOISE = 4
_NOISE_DEVIATION = math.sqrt(_BYTES_PER_NOISE * (256 * 256 - 1) / 12)
_NOISE_MEAN = _BYTES_PER_NOISE * 255 // 2


def direction(turn: float) -> tuple[float, float]:
    """Returns (cosine, sine) of an angle in turns (1 = full circle), from the rounded table."""
    step = math.floor(turn * TURN_STEPS + 0.5)
    return _SINES[(step + TURN_STEPS // 4) % TURN_STEPS], _SINES[step % TURN_STEPS]


class Source:
    """A stream of random numbers fixed by the words it is made from.

    It reads raw words of PCG64, whose stream NumPy guarantees, and turns them into numbers itself.

    Args:
        words: What the stream belongs to, such as a name, a version and an index.
    """

    def __init__(self, *words: str | int) -> None:
        digest = hashlib.sha256("\x1f".join(str(word) for word in words).encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest[:16], "big"))

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        raw: NDArray[np.uint64] = self._bits.random_raw((count + 7) // 8)
        return raw.astype("<u8", copy=False).view(np.uint8)[:count]

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draws one number in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def between(self, bounds: float | Sequence[float], towards_low: bool = False) -> float:
        """Draws from a range `[low, high]`; a plain number stands for itself.

        Args:
            bounds: The range, or one number.
            towards_low: Draw small values more often (density falling as 1 / sqrt), as with real defects.
        """
        if isinstance(bounds, (int, float)):
            return float(bounds)
        share = self.uniform()
        return float(bounds[0]) + (float(bounds[1]) - float(bounds[0])) * (
            share * share if towards_low else share
        )

    def integer(self, low: int, high: int) -> int:
        """Draws one whole number in low..high, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def count(self, bounds: int | Sequence[int]) -> int:
        """Draws a whole number from `[low, high]`, both included; a plain number stands for itself."""
        return bounds if isinstance(bounds, int) else self.integer(bounds[0], bounds[1])

    def chance(self, probability: float) -> bool:
        """Is true with the given probability."""
        return self.uniform() < probability

    def sign(self) -> int:
        """Draws -1 or 1."""
        return 1 if self.uniform() < 0.5 else -1

    def pick(self, weights: dict[T, float]) -> T:
        """Draws a key with probability proportional to its weight."""
        return pick_at(weights, self.uniform())

    def uniforms(self, *shape: int) -> Field:
        """Draws an array of numbers in [0, 1), 16 bits each."""
        size = math.prod(shape)
        words = self._bytes(2 * size).view("<u2").astype(np.float32)
        words *= 2.0**-16
        return words.reshape(shape)

    def noise(self, *shape: int, spread: tuple[int, int] = (1, 1)) -> Field:
        """Draws bell-shaped noise of unit deviation, averaged over a box of `spread` (rows, columns)."""
        rows, columns = shape[0] + spread[0] - 1, shape[1] + spread[1] - 1
        planes = self._bytes(_BYTES_PER_NOISE * rows * columns).reshape(_BYTES_PER_NOISE, rows, columns)
        total: NDArray[Any] = planes[0].astype(np.int16)
        for plane in planes[1:]:
            total += plane
        total -= _NOISE_MEAN
        for axis, length in enumerate(spread):
            if length > 1:
                total = _window_sum(total, length, axis)
        scale = 1.0 / (_NOISE_DEVIATION * math.sqrt(spread[0] * spread[1]))
        return total.astype(np.float32) * scale


def pick_at(weights: dict[T, float], share: float) -> T:
    """Returns the key at `share` (in [0, 1)) of the running total of the weights."""
    left = share * sum(weights.values())
    for key, weight in weights.items():
        left -= weight
        if left < 0:
            return key
    return next(reversed(weights))


def _window_sum(values: NDArray[Any], length: int, axis: int) -> NDArray[np.int32]:
    """Sums whole numbers over a sliding window, exactly."""
    total = np.cumsum(values, axis=axis, dtype=np.int32)
    size = values.shape[axis]
    ahead = [slice(None), slice(None)]
    ahead[axis] = slice(length - 1, size)
    result = total[tuple(ahead)].copy()
    inner, behind = [slice(None), slice(None)], [slice(None), slice(None)]
    inner[axis], behind[axis] = slice(1, None), slice(0, size - length)
    result[tuple(inner)] -= total[tuple(behind)]
    return result


def smooth(share: Field) -> Field:
    """Eases [0, 1] to [0, 1] with flat ends (3t^2 - 2t^3)."""
    return share * share * (3 - share - share)


def ramp(distance: Field, softness: float) -> Field:
    """Turns a signed distance (positive inside, pixels) into coverage in [0, 1], one soft edge wide."""
    return np.clip(distance * (1.0 / softness) + 0.5, 0, 1)


def _places(length: int, cell: float, offset: float) -> tuple[NDArray[np.intp], Field]:
    """Returns for each pixel of an axis the lattice index before it and the eased share to the next."""
    position = (np.arange(length, dtype=np.float32) + offset) * (1.0 / cell)
    index = np.floor(position)
    return index.astype(np.intp), smooth(position - index)


def lattice_noise(
    source: Source, shape: tuple[int, int], cell: tuple[float, float], octaves: int = 1
) -> Field:
    """Makes smooth noise in about [-1, 1] by interpolating random numbers on a lattice.

    Args:
        source: Random numbers.
        shape: (rows, columns).
        cell: Lattice spacing in pixels (rows, columns); each further octave halves it.
        octaves: How many layers to add, each with half the weight of the one before.

    Returns:
        A field (rows, columns), float32.
    """
    total = np.zeros(shape, np.float32)
    weight, norm = 1.0, 0.0
    tall, wide = cell
    for _ in range(octaves):
        tall, wide = max(tall, 1.0), max(wide, 1.0)
        rows, down = _places(shape[0], tall, source.uniform(0, tall))
        columns, right = _places(shape[1], wide, source.uniform(0, wide))
        lattice = source.uniforms(int(rows[-1]) + 2, int(columns[-1]) + 2)
        lattice = lattice * (2 * weight) - weight
        # Columns first: the lattice is small, so the costly gather runs on few rows.
        left = lattice[:, columns]
        across = left + (lattice[:, columns + 1] - left) * right
        above = across[rows]
        total += above + (across[rows + 1] - above) * down[:, None]
        norm += weight
        weight, tall, wide = weight / 2, tall / 2, wide / 2
    return total * (1.4 / norm)


def cloud_noise(source: Source, shape: tuple[int, int], cell: tuple[float, float], octaves: int = 3) -> Field:
    """Makes `lattice_noise` on a bent lattice, so that no straight border shows at a threshold."""
    most = int(cell[0] / 2) + 1, int(cell[1] / 2) + 1
    wide = lattice_noise(source, (shape[0] + 2 * most[0], shape[1] + 2 * most[1]), cell, octaves)
    place = []
    for axis in (0, 1):
        bend = np.clip(lattice_noise(source, shape, (cell[0] * 0.8, cell[1] * 0.8)), -1, 1)
        pixel = np.floor(bend * most[axis]).astype(np.intp)
        own = np.arange(shape[axis]) + most[axis]
        place.append(pixel + (own[:, None] if axis == 0 else own))
    return wide[place[0], place[1]]


class Wander:
    """A random smooth function of one variable, in about [-1, 1].

    Args:
        source: Random numbers.
        length: The variable runs from -length / 2 to length / 2; outside it stays at the ends.
        cell: Spacing of the random numbers, in the variable's unit.
        octaves: How many layers, each at half the spacing and weight of the one before.
    """

    def __init__(self, source: Source, length: float, cell: float, octaves: int = 1) -> None:
        self._start = length / 2
        self._top = max(1, math.ceil(length * 4))
        row = lattice_noise(source, (1, self._top + 2), (1.0, max(1.0, cell * 4)), octaves)
        self._values = row[0]

    def __call__(self, at: Field) -> Field:
        """Samples the function (quarter-pixel table, linear in between)."""
        place = np.clip((at + self._start) * 4, 0, self._top)
        index = np.floor(place)
        before = index.astype(np.intp)
        low = self._values[before]
        return low + (self._values[before + 1] - low) * (place - index)


def slopes(height: Field) -> tuple[Field, Field]:
    """Returns half the central differences of a field down the rows and along the columns, edges repeated."""
    padded = np.pad(height, 1, mode="edge")
    half = 0.5
    return (padded[2:, 1:-1] - padded[:-2, 1:-1]) * half, (padded[1:-1, 2:] - padded[1:-1, :-2]) * half
