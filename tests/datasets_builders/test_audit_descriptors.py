"""The vectors of windows and orientations against brute force on pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_builders.audit.descriptors import (
    DIMENSIONS,
    MIN_AREA,
    ORIENTATIONS,
    THUMB,
    WHOLE,
    WINDOWS,
    Window,
    describe,
    even_contrast,
    orient,
    orient_window,
    squash,
)


@pytest.fixture(scope="module")
def textures() -> np.ndarray:
    """Four pictures of coarse noise, uint8 (4, 192, 192)."""
    noise = np.random.default_rng(3).normal(size=(4, 192, 192)).astype(np.float32)
    smooth = [cv2.GaussianBlur(picture, (0, 0), 9) for picture in noise]
    return np.stack([np.clip(128 + 40 * s / s.std(), 0, 255).astype(np.uint8) for s in smooth])


def test_windows_cover_every_crop_of_sixty_percent() -> None:
    assert WINDOWS[0] == WHOLE
    assert all(w.width * w.height >= MIN_AREA for w in WINDOWS)
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = rng.uniform(0.6, 1, 2)
        if width * height < 0.6:
            continue
        crop = Window(rng.uniform(0, 1 - width), rng.uniform(0, 1 - height), width, height)
        edges = [
            max(
                abs(w.x - crop.x),
                abs(w.y - crop.y),
                abs(w.x + w.width - crop.x - crop.width),
                abs(w.y + w.height - crop.y - crop.height),
            )
            for w in WINDOWS
        ]
        assert min(edges) <= 0.1, crop


def test_vectors_have_length_one(textures: np.ndarray) -> None:
    thumbs = np.stack([squash(picture) for picture in textures])
    vectors = describe(thumbs, windows=True, orientations=True)
    assert vectors.shape == (4, len(ORIENTATIONS), len(WINDOWS), DIMENSIONS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


def test_a_flat_picture_has_zero_vectors() -> None:
    thumbs = squash(np.full((100, 80), 77, np.uint8))[None]
    assert np.abs(describe(thumbs, windows=True, orientations=False)).max() < 1e-2


@pytest.mark.parametrize("orientation", range(8))
def test_vector_of_a_turned_picture_is_the_turned_vector(textures: np.ndarray, orientation: int) -> None:
    straight = describe(np.stack([squash(p) for p in textures]), windows=False, orientations=True)
    turned = np.stack([squash(orient(p, orientation)) for p in textures])
    really = describe(turned, windows=False, orientations=False)[:, 0, 0]
    np.testing.assert_allclose(straight[:, orientation, 0], really, atol=2e-3)


def test_vector_of_a_window_is_near_that_of_the_cut_picture(textures: np.ndarray) -> None:
    thumbs = np.stack([squash(picture) for picture in textures])
    vectors = describe(thumbs, windows=True, orientations=False)[:, 0]
    for number, window in list(enumerate(WINDOWS))[1::7]:
        x, y, w, h = (round(value * 192) for value in window)
        cut = np.stack([squash(picture[y : y + h, x : x + w]) for picture in textures])
        found = describe(cut, windows=False, orientations=False)[:, 0, 0] @ vectors[:, number].T
        assert np.diag(found).min() > 0.8
        assert (np.diag(found) > found.max(axis=1) - 1e-6).all(), "nearest to its own picture"


def test_rows_columns_and_lighting_make_no_difference(textures: np.ndarray) -> None:
    picture = textures[0].astype(np.float32)
    ramp = np.linspace(0, 60, 192, dtype=np.float32)
    changed = np.clip(0.5 * picture + ramp[:, None] + 20, 0, 255).astype(np.uint8)
    pair = describe(np.stack([squash(textures[0]), squash(changed)]), windows=False, orientations=False)
    assert float(pair[0, 0, 0] @ pair[1, 0, 0]) > 0.97


def test_orientations_are_what_their_names_say() -> None:
    picture = np.array([[1, 2, 3], [4, 5, 6]])
    turned = dict(zip(ORIENTATIONS, (orient(picture, k).tolist() for k in range(8)), strict=True))
    assert turned["mirrored left-right"] == picture[:, ::-1].tolist()
    assert turned["mirrored top-bottom"] == picture[::-1].tolist()
    assert turned["turned by 180°"] == np.rot90(picture, 2).tolist()
    assert turned["turned by 90° clockwise"] == np.rot90(picture, -1).tolist()
    assert turned["turned by 90° counter-clockwise"] == np.rot90(picture, 1).tolist()
    assert turned["mirrored at the diagonal"] == picture.T.tolist()
    assert len({str(pixels) for pixels in turned.values()}) == 8


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 7),
    st.tuples(*[st.integers(0, 20)] * 2),
    st.tuples(*[st.integers(1, 20)] * 2),
)
def test_a_window_turns_with_its_picture(
    orientation: int, start: tuple[int, int], size: tuple[int, int]
) -> None:
    marked = np.zeros((40, 40), np.uint8)
    marked[start[1] : start[1] + size[1], start[0] : start[0] + size[0]] = 1
    rows, columns = np.nonzero(orient(marked, orientation))
    window = orient_window(Window(*(v / 40 for v in (*start, *size))), orientation)
    expected = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
    np.testing.assert_allclose(np.array(window) * 40, expected, atol=1e-9)


def test_squash_keeps_less_than_a_grey_value() -> None:
    fine = np.zeros((256, 256), np.uint8)
    fine[::2, ::4] = 1  # One pixel in eight: mean 1/8 everywhere.
    assert (squash(fine) == 32).all()
    assert squash(np.zeros((5, 300), np.uint8)).shape == (THUMB, THUMB)


def test_even_contrast_is_blind_to_gain_and_offset() -> None:
    picture = np.random.default_rng(0).normal(0, 30, (64, 64)).astype(np.float32)
    there = even_contrast(picture, 8)
    other = even_contrast(picture * 3 + 50, 8)
    assert np.abs(there - other).max() < 0.15
    assert np.abs(even_contrast(np.full((64, 64), 9, np.float32), 8)).max() == 0
