"""Pseudo boxes against a slow version of them, against closed forms, and at the edges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_boxes import literal_boxes, literal_upsample
from made_maps import defect_map, map_row, store_maps

from agssp.box_settings import OUTLINES, BoxSettings
from agssp.pseudo_boxes import Boxes, boxes_from_map, make_boxes, thresholds
from agssp.upsampling import upsample
from datasets_builders.errors import UserError


def random_map(seed: int, grid: tuple[int, int], kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "defects":
        return defect_map(rng, grid, int(rng.integers(0, 5)))
    values = rng.random(grid, dtype=np.float32) * 2
    # Few levels: equal scores, and thresholds that pixels meet exactly.
    return np.round(values * 4) / 4 if kind == "levels" else values


maps = st.builds(
    random_map,
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from(["noise", "levels", "defects"]),
)
sizes = st.tuples(st.integers(1, 130), st.integers(1, 130))


def plain(found: Boxes) -> list[tuple[tuple[float, ...], float, float]]:
    return [
        (tuple(box), score, area)
        for box, score, area in zip(
            found.xywh.tolist(), found.scores.tolist(), found.areas.tolist(), strict=True
        )
    ]


@settings(max_examples=150, deadline=None)
@given(maps, sizes)
def test_upsampling_is_torchs(values: np.ndarray, size: tuple[int, int]) -> None:
    pixels = upsample(values, size)
    np.testing.assert_allclose(pixels, literal_upsample(values, size), atol=1e-6)
    assert pixels.max() <= values.max() * (1 + 1e-6)


@settings(max_examples=100, deadline=None)
@given(maps, sizes, st.data())
def test_a_part_of_an_image_has_the_values_of_the_whole(
    values: np.ndarray, size: tuple[int, int], data: st.DataObject
) -> None:
    spans = []
    for length in (size[1], size[0]):
        start = data.draw(st.integers(0, length))
        spans.append(slice(start, data.draw(st.integers(start, length))))
    np.testing.assert_array_equal(upsample(values, size, *spans), upsample(values, size)[spans[0], spans[1]])


def test_corner_patches_lie_on_corner_pixels_and_constants_stay() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    pixels = upsample(values, (31, 21))
    np.testing.assert_array_equal(pixels[::10, ::10], values)
    assert (upsample(np.full((7, 9), 0.1, np.float32), (123, 45)) == np.float32(0.1)).all()


@settings(max_examples=250, deadline=None)
@given(
    maps,
    sizes,
    st.floats(-0.5, 2.5),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    st.sampled_from(OUTLINES),
)
def test_boxes_are_those_of_the_literal_version(
    values: np.ndarray, size: tuple[int, int], threshold: float, top: int, nms_iou: float, outline: str
) -> None:
    wanted = literal_boxes(upsample(values, size), np.float32(threshold), top, nms_iou, outline)
    found = boxes_from_map(values, size, threshold, BoxSettings(top=top, nms_iou=nms_iou, outline=outline))
    assert plain(found) == wanted


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.floats(0.1, 0.9),
    st.sampled_from(OUTLINES),
)
def test_ragged_masks_too(seed: int, size: tuple[int, int], share: float, outline: str) -> None:
    """Maps as large as their images, so that every mask occurs: thin lines, holes in holes, regions at edges."""
    values = np.random.default_rng(seed).random(size[::-1], dtype=np.float32)
    wanted = literal_boxes(values, np.float32(share), outline=outline)
    assert plain(boxes_from_map(values, size, share, BoxSettings(outline=outline))) == wanted


@settings(max_examples=100, deadline=None)
@given(maps, sizes, st.floats(0, 2), st.floats(0, 1))
def test_a_lower_threshold_covers_no_less(
    values: np.ndarray, size: tuple[int, int], threshold: float, less: float
) -> None:
    every = BoxSettings(top=10_000, nms_iou=1.0)
    high = boxes_from_map(values, size, threshold, every)
    low = boxes_from_map(values, size, threshold - less, every)
    assert high.areas.sum() <= low.areas.sum()
    if len(high.scores):
        # Higher where the peak was too small a region before.
        assert low.scores[0] >= high.scores[0]


def test_what_lies_in_a_hole_is_a_region_of_its_own_unless_contours_are_asked_for() -> None:
    values = np.zeros((40, 40), np.float32)
    values[2:38, 2:38] = 1
    values[6:34, 6:34] = 0
    values[10:30, 10:30] = 2
    ring, inside = (2, 2, 36, 36), (10, 10, 20, 20)
    found = boxes_from_map(values, (40, 40), 0.5, BoxSettings())
    assert plain(found) == [(inside, 2.0, 400.0), (ring, 1.0, 36 * 36 - 28 * 28)]
    outer = boxes_from_map(values, (40, 40), 0.5, BoxSettings(outline="contours"))
    assert plain(outer) == [(ring, 2.0, 36 * 36)]


def test_only_boxes_that_overlap_enough_are_suppressed() -> None:
    values = np.zeros((60, 100), np.float32)
    values[0:50, 0:50] = 1
    values[1:49, 1:49] = 0
    values[2:48, 2:48] = 2  # 46 x 46 in 50 x 50: IoU 0.8464
    values[0:50, 60:100] = 0.75  # disjoint
    assert len(boxes_from_map(values, (100, 60), 0.5, BoxSettings(nms_iou=0.85)).scores) == 3
    kept = boxes_from_map(values, (100, 60), 0.5, BoxSettings(nms_iou=0.8))
    assert kept.xywh.tolist() == [[2, 2, 46, 46], [60, 0, 40, 50]]
    assert len(boxes_from_map(values, (100, 60), 0.5, BoxSettings(nms_iou=0.0)).scores) == 2


def test_the_best_are_chosen_before_suppression() -> None:
    """The second best overlaps the best: with top 2 one box is left, not two."""
    values = np.zeros((60, 100), np.float32)
    values[0:50, 0:50] = 1
    values[1:49, 1:49] = 0
    values[2:48, 2:48] = 2
    values[0:50, 60:100] = 0.75
    assert len(boxes_from_map(values, (100, 60), 0.5, BoxSettings(top=2)).scores) == 1


@pytest.mark.parametrize(
    ("side", "size", "count"), [(3, (99, 99), 0), (4, (99, 99), 1), (4, (500, 500), 0), (5, (500, 500), 1)]
)
def test_small_regions_are_dropped(side: int, size: tuple[int, int], count: int) -> None:
    """At least 10 pixels, and at least one per 100 x 100 pixels of the image."""
    values = np.zeros((size[1], size[0]), np.float32)
    values[7 : 7 + side, 5 : 5 + side] = 1
    assert len(boxes_from_map(values, size, 0.5).scores) == count


def test_equal_scores_are_ordered_by_area_then_place() -> None:
    values = np.zeros((30, 60), np.float32)
    for x, y, side in ((40, 20, 5), (20, 3, 4), (3, 3, 4), (3, 20, 4)):
        values[y : y + side, x : x + side] = 1
    found = boxes_from_map(values, (60, 30), 0.5)
    assert found.xywh[:, :2].tolist() == [[40, 20], [3, 3], [20, 3], [3, 20]]


def test_next_to_nothing() -> None:
    one = np.ones((15, 15), np.float32)
    assert not len(boxes_from_map(one, (1, 1), 0.0).scores)
    assert plain(boxes_from_map(np.ones((1, 1), np.float32), (12, 11), 0.5)) == [((0, 0, 12, 11), 1.0, 132.0)]
    assert plain(boxes_from_map(one, (640, 480), 0.9)) == [((0, 0, 640, 480), 1.0, 640 * 480)]
    assert not len(boxes_from_map(one, (640, 480), 1.0).scores)  # above, not equal
    peak = np.zeros((50, 50), np.float32)
    peak[25, 25] = 1
    assert not len(boxes_from_map(peak, (4, 4), 0.5).scores)  # no pixel lies near that grid point
    assert boxes_from_map(one, (10, 10), 2.0).xywh.shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    values = np.ones((3, 3), np.float32)
    values[1, 1] = bad
    with pytest.raises(UserError, match="not finite"):
        boxes_from_map(values, (10, 10), 0.5)
    store = store_maps(
        tmp_path / "maps", [map_row("fine", np.ones((3, 3)), (9, 9)), map_row("broken", values, (9, 9))]
    )
    with pytest.raises(UserError, match="'broken'"):
        make_boxes(store, tmp_path / "boxes")
    assert not (tmp_path / "boxes").exists()


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (100_000, 100_000)])
def test_sizes_that_cannot_be_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be"):
        boxes_from_map(np.ones((3, 3), np.float32), size, 0.5)
    with pytest.raises(UserError, match=r"'broken'.*cannot be"):
        make_boxes(
            store_maps(tmp_path / "maps", [map_row("broken", np.ones((3, 3)), size)]), tmp_path / "boxes"
        )


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    store = store_maps(tmp_path / "maps", [map_row("broken", np.ones((3, 3)), (9, 9), score=float("nan"))])
    with pytest.raises(UserError, match=r"score of image 'broken'"):
        make_boxes(store, tmp_path / "boxes", BoxSettings(image_gate=0.5))


@pytest.mark.parametrize(
    "change",
    [
        {"margin": np.nan},
        {"image_gate": np.inf},
        {"top": 0},
        {"nms_iou": 1.1},
        {"nms_iou": np.nan},
        {"outline": "x"},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float | str]) -> None:
    with pytest.raises(UserError, match=r"--"):
        replace(BoxSettings(), **change)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2**32 - 1)), min_size=1, max_size=12),
    st.randoms(),
)
def test_thresholds_are_means_of_maxima_whatever_the_order(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int]], random: object
) -> None:
    rows = [
        map_row(str(i), random_map(seed, (4, 5), "noise"), (9, 9), category)
        for i, (category, seed) in enumerate(drawn)
    ]
    found = thresholds(store_maps(tmp_path_factory.mktemp("t") / "maps", rows), BoxSettings(margin=0.25))
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert found == thresholds(
        store_maps(tmp_path_factory.mktemp("t") / "maps", rows), BoxSettings(margin=0.25)
    )
    for category in {row.category for row in rows}:
        maxima = [row.map.max() for row in rows if row.category == category]
        assert found[category] == pytest.approx(np.mean(maxima, dtype=np.float64) - 0.25, abs=1e-12)
    assert set(found) == {row.category for row in rows}


def test_a_larger_margin_covers_no_less(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    store = store_maps(tmp_path / "maps", [map_row(str(i), defect_map(rng), (150, 130)) for i in range(6)])
    covered = []
    for margin in (-1.0, 0.0, 0.05, 0.1, 0.3, 3.0):
        choice = BoxSettings(margin=margin, top=1000, nms_iou=1.0)
        boxes = make_boxes(store, tmp_path / str(margin), choice)
        covered.append(sum(row.areas.sum() for row in boxes))
    assert covered[0] == 0
    assert covered == sorted(covered)
    assert covered[-1] == 6 * 150 * 130


def test_the_gate_leaves_images_without_boxes_and_thresholds_as_they_are(tmp_path: Path) -> None:
    # 0.7 is none of float32's numbers, which scores are stored as.
    rows = [map_row(f"i{score}", np.ones((3, 3)), (30, 30), score=score) for score in (0.25, 0.7, 0.75)]
    store = store_maps(tmp_path / "maps", rows)
    open_gate = make_boxes(store, tmp_path / "open")
    gated = make_boxes(store, tmp_path / "gated", BoxSettings(image_gate=0.7))
    assert [len(row.boxes) for row in open_gate] == [1, 1, 1]
    assert [len(row.boxes) for row in gated] == [0, 1, 1]  # under it, not equal
    assert gated.categories["plate"].threshold == open_gate.categories["plate"].threshold == 0.9
    assert gated.categories["plate"].negatives == 1


def test_workers_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        map_row(str(i), defect_map(rng, (15, 15), i % 4), (60 + i % 7, 90), "ab"[i % 2]) for i in range(300)
    ]
    store = store_maps(tmp_path / "maps", rows)
    seen: list[int] = []
    one = make_boxes(store, tmp_path / "one", workers=1, on_progress=seen.append)
    many = make_boxes(store, tmp_path / "many", workers=5)
    assert one.fingerprint == many.fingerprint
    for name in ("boxes.parquet", "metadata.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    assert seen[-1] == 300
    assert seen == sorted(seen)
    limits = thresholds(store, BoxSettings())
    for row, stored in zip(one, rows, strict=True):
        wanted = boxes_from_map(stored.map, (stored.width, stored.height), limits[stored.category])
        assert (row.image_id, row.category) == (stored.image_id, stored.category)
        assert row.boxes.tolist() == wanted.xywh.tolist()
        assert row.scores.tolist() == wanted.scores.tolist()
        assert row.areas.tolist() == wanted.areas.tolist()


def test_images_above_the_threshold_as_a_whole_are_counted(tmp_path: Path) -> None:
    """Nearly all images free of defects, maps without noise: the mean less the margin falls under their level."""
    defect = np.zeros((9, 9))
    defect[3:6, 3:6] = 1
    rows = [map_row(str(i), defect if i == 0 else np.zeros((9, 9)), (40, 30)) for i in range(20)]
    store = store_maps(tmp_path / "maps", rows)
    found = make_boxes(store, tmp_path / "boxes").categories["plate"]
    assert (found.threshold, found.flooded, found.boxes) == (pytest.approx(-0.05), 20, 20)
    found = make_boxes(store, tmp_path / "none", BoxSettings(margin=0)).categories["plate"]
    assert (found.flooded, found.boxes, found.negatives) == (0, 1, 19)
