"""Alignment against placements that were made, and scores of what is and is not the same metal."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from datasets_builders.audit.alignment import (
    align,
    cut,
    first_look,
    prepare_thumb,
    second_look,
)
from datasets_builders.audit.descriptors import WHOLE, Window, even_contrast, squash


def grain(seed: int, side: int = 200, stripes: float = 0.0) -> np.ndarray:
    """A ground surface: noise drawn out along the rows, with stripes along the columns that all share."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), sigmaX=3, sigmaY=1)
    shared = np.convolve(np.random.default_rng(99).normal(size=side), np.ones(9) / 3, mode="same")
    picture = 120 + 12 * noise / noise.std() + stripes * shared[None, :]
    return np.clip(picture, 0, 255).astype(np.uint8)


def test_cut_is_exact_on_whole_pixels() -> None:
    picture = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
    np.testing.assert_allclose(
        cut(picture, Window(10 / 60, 5 / 40, 20 / 60, 20 / 40), 20), picture[5:25, 10:30]
    )


@pytest.mark.parametrize(
    "wanted", [Window(0.03, -0.02, 0.97, 1.04), Window(0.1, 0.2, 0.8, 0.7), Window(0, 0, 1, 1)]
)
def test_align_finds_the_placement(wanted: Window) -> None:
    second = even_contrast(cv2.GaussianBlur(grain(1), (0, 0), 3).astype(np.float32), 20)
    first = cut(second, wanted, 96)
    start = Window(wanted.x + 0.03, wanted.y - 0.03, wanted.width * 1.04, wanted.height * 0.97)
    found = align(first, second, start, steps=20)
    np.testing.assert_allclose(found, wanted, atol=0.004)


def test_align_leaves_a_flat_picture_alone() -> None:
    flat = np.zeros((64, 64), np.float32)
    assert align(flat, grain(1, 64).astype(np.float32), WHOLE, steps=5) == WHOLE


def test_second_look_scores_and_places_a_crop() -> None:
    picture = grain(2)
    wanted = Window(20 / 200, 10 / 200, 160 / 200, 170 / 200)
    crop = picture[10:180, 20:180]
    agreement = second_look(crop, picture, WHOLE, Window(0.12, 0.03, 0.78, 0.88))
    assert agreement.score > 0.9
    np.testing.assert_allclose(agreement.window, wanted, atol=0.005)


def test_first_look_scores_a_crop_too() -> None:
    picture = cv2.GaussianBlur(grain(2), (0, 0), 3)
    first = prepare_thumb(squash(picture[10:180, 20:180]))
    agreement = first_look(first, prepare_thumb(squash(picture)), WHOLE, Window(0.12, 0.03, 0.78, 0.88))
    assert agreement.score > 0.5
    np.testing.assert_allclose(agreement.window, (0.1, 0.05, 0.8, 0.85), atol=0.01)


@pytest.mark.parametrize("seed", range(8))
def test_shared_stripes_alone_are_no_match(seed: int) -> None:
    first, second = grain(100 + seed, stripes=25), grain(200 + seed, stripes=25)
    plain = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert plain > 0.7, "to the eye, and to plain correlation, they are alike"
    assert second_look(first, second, WHOLE, WHOLE).score < 0.2
    assert second_look(first, first, WHOLE, WHOLE).score > 0.99


def test_one_shared_mark_is_no_match() -> None:
    first, second = grain(1), grain(2)
    for picture in (first, second):
        cv2.circle(picture, (150, 60), 30, 0, -1)
    agreement = second_look(first, second, WHOLE, WHOLE)
    assert agreement.whole > agreement.score
    assert agreement.score < 0.2


def test_pictures_that_barely_overlap_are_refused() -> None:
    picture = grain(1)
    assert second_look(picture, picture, WHOLE, Window(0.7, 0.7, 1.0, 1.0)).score == -1


def test_tiny_and_long_pictures_are_compared() -> None:
    picture = grain(5, 400)
    long = picture[:90]
    assert (
        second_look(cv2.resize(long, (120, 27), interpolation=cv2.INTER_AREA), long, WHOLE, WHOLE).score > 0.6
    )
