from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from datasets_builders.components import MIN_PIXELS, binary_mask, connected_components


def flood(defect: np.ndarray) -> list[set[tuple[int, int]]]:
    """Regions by flood fill, in the order of their first pixel row by row."""
    left = {(int(y), int(x)) for y, x in np.argwhere(defect)}
    regions = []
    for start in sorted(left):
        if start not in left:
            continue
        region, waiting = set(), [start]
        while waiting:
            y, x = waiting.pop()
            if (y, x) in left:
                left.discard((y, x))
                region.add((y, x))
                waiting += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        regions.append(region)
    return regions


@given(arrays.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.booleans()))
@settings(max_examples=150, deadline=None)
def test_regions_are_those_of_a_flood_fill(defect: np.ndarray) -> None:
    expected = flood(defect)
    large = [region for region in expected if len(region) >= MIN_PIXELS]
    found = connected_components(defect)
    assert found.specks == len(expected) - len(large)
    assert len(found.regions) == len(large)
    for number, (region, pixels) in enumerate(zip(found.regions, large, strict=True), start=1):
        rows, columns = zip(*pixels, strict=True)
        assert region.area == len(pixels)
        assert region.bbox == (
            min(columns),
            min(rows),
            max(columns) - min(columns) + 1,
            max(rows) - min(rows) + 1,
        )
        assert {(int(y), int(x)) for y, x in np.argwhere(found.mask == number)} == pixels
    assert int(found.mask.max(initial=0)) == len(large)


def test_more_regions_than_8_bits_can_number_are_refused() -> None:
    defect = np.zeros((64, 400), bool)
    for top in range(0, 60, 6):
        for left in range(0, 390, 6):
            defect[top : top + 4, left : left + 4] = True
    with pytest.raises(ValueError, match="more than 255"):
        connected_components(defect)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 6], [0, 1, 1]),  # class numbers
        ([0, 100, 127, 128, 255], [0, 0, 0, 1, 1]),  # black and white with blurred edges
        ([0, 1, 3, 255], [0, 0, 0, 1]),
        ([0, 0], [0, 0]),
    ],
)
def test_binary_mask_tells_class_numbers_from_blurred_edges(values: list[int], expected: list[int]) -> None:
    found = binary_mask(np.array([values], np.uint8))
    assert found[0].astype(int).tolist() == expected
