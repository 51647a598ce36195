"""Procedural scenes: exact masks, the stated frequencies, and the same bits everywhere."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets_builders.errors import UserError
from datasets_builders.synthetic import Scene, config_names, load_config, render, scenes
from datasets_builders.synthetic.defects import KINDS
from datasets_builders.synthetic.marks import OUTSIDE_SHARE, VISIBLE, Mark, Site
from datasets_builders.synthetic.numerics import Source
from datasets_builders.synthetic.surfaces import BRIGHTEST, DARKEST, photograph, render_surface

NAMES = ("casting_billet_synthetic", "gc10_synthetic", "steel_pipe_synthetic")

GOLDEN = {
    "casting_billet_synthetic": "e9ff2aee0bc72e70e8e4a9fda3c78a519503e47f0afc3b7e1fe34005d111593e",
    "gc10_synthetic": "9d249502a4749e8b979c9dae9e615347bf0ee30150c58fc940742327f31a9a4b",
    "steel_pipe_synthetic": "b994b6be84912d46fab93f092627841e0f29e5d9a7d8b1ba4c3f984c35886ff2",
}
"""sha256 over indices 0 to 23 of both splits. A change here means a new `version` in the config."""


def digest(name: str, count: int = 24) -> str:
    total = hashlib.sha256()
    for split in ("train", "validation"):
        for index in range(count):
            scene = render(name, index, split)
            total.update(scene.image.tobytes())
            for mask, category in zip(scene.masks, scene.categories, strict=True):
                total.update(mask.tobytes() + bytes([category]))
    return total.hexdigest()


@functools.cache
def some(name: str) -> list[tuple[Scene, list[scenes.Placed]]]:
    config = load_config(name)
    return [(render(name, index, "train"), scenes.compose(config, index, "train")[1]) for index in range(60)]


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_the_three_datasets_have_the_papers_classes_in_order() -> None:
    assert config_names() == sorted(NAMES)
    classes = {name: list(load_config(name)["classes"]) for name in NAMES}
    assert classes["casting_billet_synthetic"] == [
        "scratch",
        "weld_slag",
        "cutting_opening",
        "water_slag_mark",
        "slag_skin",
        "longitudinal_crack",
    ]
    assert classes["steel_pipe_synthetic"] == ["warp", "external_fold", "wrinkle", "scratch"]
    assert classes["gc10_synthetic"] == [
        "punching_hole",
        "welding_line",
        "crescent_gap",
        "water_spot",
        "oil_spot",
        "silk_spot",
        "inclusion",
        "rolled_pit",
        "crease",
        "waist_folding",
    ]
    used = {entry["kind"] for name in NAMES for entry in load_config(name)["classes"].values()}
    assert used == set(KINDS)


@pytest.mark.parametrize("name", NAMES)
def test_scenes_keep_their_contract(name: str) -> None:
    config = load_config(name)
    for scene, _ in some(name):
        assert scene.image.shape == (*config["size"], 3)
        assert scene.image.dtype == np.uint8
        assert len(scene.masks) == len(scene.categories)
        assert all(category in range(len(config["classes"])) for category in scene.categories)
        for mask in scene.masks:
            assert mask.shape == tuple(config["size"])
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) == {0, 1}
            left, top, right, bottom = box_of(mask)
            assert min(right - left, bottom - top) >= scenes.SMALLEST_SIDE
            assert mask.sum() >= scenes.SMALLEST_AREA


@pytest.mark.parametrize("name", NAMES)
def test_boxes_barely_overlap(name: str) -> None:
    for scene, _ in some(name):
        boxes = [box_of(mask) for mask in scene.masks]
        for one in range(len(boxes)):
            for other in range(one):
                canvas = np.zeros((2, *scene.masks[0].shape), bool)
                for layer, (left, top, right, bottom) in zip(canvas, (boxes[one], boxes[other]), strict=True):
                    layer[top:bottom, left:right] = True
                smaller = min(canvas[0].sum(), canvas[1].sum())
                assert (canvas[0] & canvas[1]).sum() <= scenes.LARGEST_OVERLAP * smaller


@pytest.mark.parametrize("name", NAMES)
def test_a_pixel_is_in_the_mask_exactly_when_the_defect_changed_it_visibly(name: str) -> None:
    config = load_config(name)
    checked = 0
    for index, (scene, placed) in enumerate(some(name)):
        whole, _ = scenes.compose(config, index, "train")
        for position, mask in enumerate(scene.masks):
            without, same = scenes.compose(config, index, "train", skip=position)
            assert len(same) == len(placed)
            change = np.abs(whole.gray - without.gray)
            assert change[mask == 1].min() >= VISIBLE - 1e-5
            assert change[mask == 0].max(initial=0) <= OUTSIDE_SHARE * change[mask == 1].max() + 1e-5
            window = np.zeros_like(mask)
            window[placed[position].mark.window] = 1
            assert not change[window == 0].any()
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("name", NAMES)
def test_the_change_survives_the_camera(name: str) -> None:
    config = load_config(name)
    for index, (scene, _) in enumerate(some(name)[:30]):
        for position, mask in enumerate(scene.masks):
            without, _ = scenes.compose(config, index, "train", skip=position)
            noise = scenes._sources(config, index, "train")[1]
            clean = photograph(without, noise).astype(int)
            differs = np.abs(scene.image.astype(int) - clean).max(axis=2) > 0
            assert differs[mask == 1].mean() >= 0.95


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_never_cut_off_by_their_own_frame(name: str) -> None:
    for index, (_, placed) in enumerate(some(name)):
        left, top, right, bottom = scenes.compose(load_config(name), index, "train")[0].metal
        for one in placed:
            mask, window = one.mark.mask, one.mark.window
            assert not (mask[0].any() and window[0].start > top)
            assert not (mask[-1].any() and window[0].stop < bottom)
            assert not (mask[:, 0].any() and window[1].start > left)
            assert not (mask[:, -1].any() and window[1].stop < right)


@pytest.mark.parametrize("name", NAMES)
def test_frequencies_follow_the_config(name: str) -> None:
    config = load_config(name)
    seen = np.zeros(len(config["classes"]))
    free, images = 0, config["splits"]["train"]
    for index in range(images):
        categories = [one.category for one in scenes.compose(config, index, "train")[1]]
        free += not categories
        np.add.at(seen, categories, 1)
    wanted = np.array([entry["frequency"] for entry in config["classes"].values()], float)
    wanted /= wanted.sum()
    assert abs(free / images - config["defect_free"]) <= 0.02
    # Three standard deviations of a share, with the little that repeats and lack of room add.
    tolerance = 3 * np.sqrt(wanted * (1 - wanted) / seen.sum()) * 1.3 + 0.01
    assert (np.abs(seen / seen.sum() - wanted) <= tolerance).all()
    assert (seen > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_any_run_of_indices_has_its_share_of_defect_free_images(name: str) -> None:
    config = load_config(name)
    for split in ("train", "validation"):
        shares = (
            np.array([scenes._even(config, index, split, 0) for index in range(3000)]) < config["defect_free"]
        )
        for start in (0, 137, 1000):
            for count in (50, 200, 1000):
                assert abs(shares[start : start + count].mean() - config["defect_free"]) <= 3 / count + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_bits_are_those_of_the_first_release(name: str) -> None:
    assert digest(name) == GOLDEN[name], "the rendered images changed: raise `version` in the config"


def _cpu_features() -> list[str]:
    from numpy._core import _multiarray_umath as umath

    return [feature for feature in umath.__cpu_dispatch__ if umath.__cpu_features__[feature]]


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("plain", [False, True], ids=["simd", "no-simd"])
def test_the_bits_do_not_depend_on_simd_or_threads(threads: str, plain: bool) -> None:
    features = _cpu_features()
    if plain and not features:
        pytest.skip("this NumPy dispatches on no CPU feature of this machine")
    code = (
        f"import json, sys; sys.path[:0] = {[str(path) for path in sys.path]!r}\n"
        "import numpy._core._multiarray_umath as umath\n"
        "from test_synthetic_scenes import digest, NAMES\n"
        "on = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]\n"
        "print(json.dumps({'on': on, 'digests': [digest(name, 6) for name in NAMES]}))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
    if plain:
        environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(features)
    output = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    answer: dict[str, Any] = json.loads(output)
    if plain:
        assert answer["on"] == []
    assert answer["digests"] == [digest(name, 6) for name in NAMES]


def test_an_image_does_not_depend_on_what_was_rendered_before() -> None:
    alone = render("gc10_synthetic", 7, "train")
    np.random.seed(0)
    for index in (3, 9, 7):
        after = render("gc10_synthetic", index, "train")
    assert np.array_equal(alone.image, after.image)
    assert alone.categories == after.categories


@pytest.mark.parametrize("name", NAMES)
def test_no_image_occurs_twice(name: str) -> None:
    images = [
        render(name, index, split).image.tobytes() for split in ("train", "validation") for index in range(40)
    ]
    assert len(set(images)) == len(images)


def test_contrast_is_a_knob_that_leaves_the_labels_alone() -> None:
    config = load_config("steel_pipe_synthetic")
    weak = copy.deepcopy(config)
    weak["contrast"] = 0.5
    pairs = 0
    for index in range(40):
        strong_marks = scenes.compose(config, index, "train")[1]
        weak_marks = scenes.compose(weak, index, "train")[1]
        assert [one.category for one in strong_marks] == [one.category for one in weak_marks]
        for strong, faint in zip(strong_marks, weak_marks, strict=True):
            assert np.array_equal(strong.mark.mask, faint.mark.mask)
            assert np.abs(faint.mark.delta).sum() < np.abs(strong.mark.delta).sum()
            pairs += 1
    assert pairs > 10


def _mark(kind: str, vertical: bool, number: int) -> tuple[Mark | None, Any]:
    name, settings = next(
        (name, entry)
        for name in NAMES
        for entry in load_config(name)["classes"].values()
        if entry["kind"] == kind
    )
    source = Source("kind", kind, number, int(vertical))
    recipes = scenes.surface_recipes()
    recipe = {**recipes[next(iter(load_config(name)["surfaces"]))], "vertical": float(vertical)}
    surface = render_surface(recipe, source, (192, 192))
    return KINDS[kind](Site(surface, source, settings, 1.0)), surface


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_marks_the_metal_whichever_way_it_runs(kind: str, vertical: bool) -> None:
    found = 0
    for number in range(12):
        mark, surface = _mark(kind, vertical, number)
        box = mark.box() if mark else None
        if mark is None or box is None:
            continue
        found += 1
        assert mark.delta.dtype == np.float32
        left, top, right, bottom = surface.metal
        assert left <= box[0] < box[2] <= right
        assert top <= box[1] < box[3] <= bottom
        assert np.isfinite(mark.delta).all()
    assert found >= 8


@pytest.mark.parametrize("size", [(64, 64), (120, 333), (256, 192)])
@pytest.mark.parametrize("name", sorted(scenes.surface_recipes()))
def test_surfaces_of_any_size(name: str, size: tuple[int, int]) -> None:
    for number in range(4):
        surface = render_surface(scenes.surface_recipes()[name], Source("surface", name, number), size)
        assert surface.gray.shape == size
        assert surface.gray.dtype == np.float32
        assert surface.gray.min() >= DARKEST
        assert surface.gray.max() <= BRIGHTEST
        image = photograph(surface, Source("noise", number))
        assert image.shape == (*size, 3)
        # Neither black nor burnt out, and never flat.
        assert 15 < image.mean() < 220
        assert image.std() > 2
        left, top, right, bottom = surface.metal
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]


def test_unknown_names_are_explained() -> None:
    with pytest.raises(UserError, match="Did you mean 'gc10_synthetic'"):
        render("gc10_syntetic", 0, "train")
    with pytest.raises(UserError, match="Did you mean 'train'"):
        render("gc10_synthetic", 0, "trian")
    with pytest.raises(UserError, match="negative"):
        render("gc10_synthetic", -1, "train")
    with pytest.raises(UserError, match="Unknown procedural dataset"):
        load_config("surfaces")


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, datasets_builders.synthetic as package\n"
        "assert 'numpy' not in sys.modules\n"
        "package.render('steel_pipe_synthetic', 0, 'train')\n"
        "heavy = {'torch', 'datasets', 'cv2', 'pandas', 'scipy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
