"""The generator's arithmetic against brute force, and a guard on what it may call."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_builders import synthetic
from datasets_builders.synthetic import numerics
from datasets_builders.synthetic.numerics import (
    Source,
    Wander,
    cloud_noise,
    direction,
    lattice_noise,
    pick_at,
)

FOLDER = Path(synthetic.__file__).parent
CODE = sorted(path for path in FOLDER.rglob("*.py") if path.name != "builder.py")

# Exact or correctly rounded in IEEE 754, whole-number work, gathers and shapes: nothing else.
EXACT_NAMES = """
abs arange ascontiguousarray bool_ clip count_nonzero cumsum empty flatnonzero float32 floor full int16 int32 int64
intp maximum minimum ones pad random sign sqrt uint8 uint64 where zeros
"""
EXACT = set(EXACT_NAMES.split())


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_only_operations_with_one_right_answer_are_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
            assert node.attr in EXACT, f"{place}: np.{node.attr}"
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Attribute)
            and node.value.attr == "random"
        ):
            assert node.attr == "PCG64", f"{place}: np.random.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert (
                node.func.attr not in {"mean", "std", "var", "dot", "prod"} or node.func.value.id == "math"
            ), place
            if node.func.attr == "sum":
                assert any(word.arg == "dtype" and word.value.attr == "int64" for word in node.keywords), (
                    place
                )
        if isinstance(node, ast.BinOp):
            assert not isinstance(node.op, ast.MatMult), place
            if isinstance(node.op, ast.Pow):
                ast.literal_eval(node.left)
                ast.literal_eval(node.right)


@given(st.floats(-3, 3))
def test_directions_are_unit_vectors_of_the_angle(turn: float) -> None:
    x, y = direction(turn)
    nearest = math.floor(turn * numerics.TURN_STEPS + 0.5) / numerics.TURN_STEPS * 2 * math.pi
    assert x == pytest.approx(math.cos(nearest), abs=1e-6)
    assert y == pytest.approx(math.sin(nearest), abs=1e-6)


def test_no_table_entry_is_near_a_rounding_tie() -> None:
    for step in range(numerics.TURN_STEPS):
        scaled = abs(math.sin(2 * math.pi * step / numerics.TURN_STEPS)) * 1e6
        assert abs(scaled - math.floor(scaled) - 0.5) > 1e-6


def test_the_stream_is_pcg64_seeded_by_sha256() -> None:
    import hashlib

    seed = int.from_bytes(hashlib.sha256(b"a\x1f1").digest()[:16], "big")
    raw = np.random.PCG64(seed).random_raw(3)
    source = Source("a", 1)
    assert source.uniform() == (int(raw[0]) >> 11) / 2**53
    assert source.integer(10, 16) == 10 + int(raw[1]) % 7
    assert source.uniforms(1, 2).tolist() == [
        [(int(raw[2]) & 0xFFFF) / 65536, (int(raw[2]) >> 16 & 0xFFFF) / 65536]
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_spread_noise_equals_the_plain_average(tall: int, wide: int, seed: int) -> None:
    rows, columns = 13, 11
    spread = Source("s", seed).noise(rows, columns, spread=(tall, wide))
    plain = Source("s", seed).noise(rows + tall - 1, columns + wide - 1).astype(float)
    for row in range(rows):
        for column in range(columns):
            window = plain[row : row + tall, column : column + wide]
            assert spread[row, column] == pytest.approx(window.sum() / math.sqrt(tall * wide), abs=1e-4)


def test_noise_has_zero_mean_and_unit_deviation() -> None:
    noise = Source("n").noise(400, 400)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(1, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 60), st.floats(1, 60), st.integers(1, 5), st.integers(0, 1000))
def test_smooth_noise_is_bounded_and_of_the_asked_shape(
    tall: float, wide: float, octaves: int, seed: int
) -> None:
    for make in (lattice_noise, cloud_noise):
        noise = make(Source(seed), (37, 53), (tall, wide), octaves)
        assert noise.shape == (37, 53)
        assert noise.dtype == np.float32
        assert np.abs(noise).max() <= 1.4 + 1e-5


def test_smooth_noise_is_smooth() -> None:
    noise = lattice_noise(Source("smooth"), (200, 200), (25, 25))
    # The steepest rise of an eased step from -1.4 to 1.4 over 25 pixels.
    assert np.abs(np.diff(noise, axis=0)).max() <= 1.5 * 2.8 / 25 + 1e-4


def test_a_wander_is_continuous_and_constant_beyond_its_ends() -> None:
    wander = Wander(Source("w"), 40, 10, 2)
    at = np.linspace(-20, 20, 2001, dtype=np.float32)
    assert np.abs(np.diff(wander(at))).max() < 0.05
    ends = wander(np.array([-20, -1000, 20, 1000], np.float32))
    assert ends[0] == ends[1]
    assert ends[2] == ends[3]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), st.integers(0, 63))
def test_picks_follow_the_running_total(weights: list[int], share: int) -> None:
    tickets = [key for key, weight in enumerate(weights) for _ in range(weight)]
    assert pick_at(dict(enumerate(weights)), share / 64) == tickets[share * len(tickets) // 64]


def test_ranges_include_their_ends_and_a_number_stands_for_itself() -> None:
    source = Source("range")
    assert {source.count([2, 4]) for _ in range(200)} == {2, 3, 4}
    assert source.count(7) == 7
    assert source.between(0.25) == 0.25
    drawn = [source.between([1, 3]) for _ in range(500)]
    low = [source.between([1, 3], towards_low=True) for _ in range(500)]
    assert all(1 <= value < 3 for value in drawn + low)
    assert np.mean(low) < np.mean(drawn) - 0.2


def test_slopes_are_central_differences() -> None:
    height = Source("h").uniforms(9, 7)
    down, right = numerics.slopes(height)
    assert down[4, 3] == pytest.approx((height[5, 3] - height[3, 3]) / 2)
    assert right[4, 3] == pytest.approx((height[4, 4] - height[4, 2]) / 2)
    assert right[0, 0] == pytest.approx((height[0, 1] - height[0, 0]) / 2)
