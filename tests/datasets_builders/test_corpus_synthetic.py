from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from datasets_builders.corpus import load_corpus, prepare_corpus, store, synthetic
from datasets_builders.corpus.synthetic import Parameters, category_recipes, parameters, render
from datasets_builders.errors import UserError
from datasets_builders.images import decode_image
from datasets_builders.synthetic.scenes import surface_recipes

pytestmark = pytest.mark.usefixtures("fresh_home")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_names_and_parameters() -> None:
    assert parameters("corpus_synthetic") == Parameters(2000, 9, 0)
    assert parameters("corpus_synthetic", images=7, seed=3) == Parameters(7, 9, 3)
    assert parameters("corpus_synthetic/n7_k61_s3") == Parameters(7, 61, 3)
    assert Parameters(7, 61, 3).name == "corpus_synthetic/n7_k61_s3"


@pytest.mark.parametrize(
    "name", ["corpus_synthetic/", "corpus_synthetic/n7", "corpus_synthetic/n07_k1_s0", "corpus_synthetic/n1_k0_s0",
             "corpus_synthetic/../x", "corpus_synthetic/n٣_k1_s0", "corpus_synthetic/n1_k1001_s0"],
)  # fmt: skip
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError):
        parameters(name)


def test_few_categories_are_the_recipes() -> None:
    recipes = surface_recipes()
    assert category_recipes(3) == dict(list(recipes.items())[:3])
    assert category_recipes(len(recipes)) == recipes


def inside(narrow: object, wide: object) -> bool:
    if isinstance(wide, dict):
        return narrow.keys() == wide.keys() and all(inside(narrow[key], wide[key]) for key in wide)  # type: ignore
    if isinstance(wide, list) and len(wide) == 2 and all(isinstance(item, (int, float)) for item in wide):
        low, high = narrow  # type: ignore[misc]
        whole = all(isinstance(item, int) for item in wide)
        kinds = all(isinstance(item, int) for item in (low, high)) or not whole
        return kinds and wide[0] - 1e-6 <= low <= high <= wide[1] + 1e-6
    if isinstance(wide, list):
        return all(inside(one, other) for one, other in zip(narrow, wide, strict=True))  # type: ignore[call-overload]
    return narrow == wide


def test_many_categories_are_lines_within_the_recipes() -> None:
    lines, recipes = category_recipes(61), surface_recipes()
    assert len(lines) == 61
    assert len({str(recipe) for recipe in lines.values()}) == 61
    for name, line in lines.items():
        assert inside(line, recipes[name.rpartition("_")[0]]), name
    assert category_recipes(20).items() <= lines.items(), "a line looks the same in every corpus"


def test_images_are_seeded_and_differ() -> None:
    size = 192
    seen = set()
    for params in (Parameters(9, 9, 0), Parameters(9, 9, 1), Parameters(9, 20, 0)):
        for index in range(9):
            category, data = render(params, index)
            assert (category, data) == render(params, index)
            pixels = decode_image(data)
            assert pixels.shape == (size, size, 3)
            assert pixels.std() > 1
            assert category == index % params.categories
            seen.add(pixels.tobytes())
    assert len(seen) == 27


def test_a_share_of_the_images_has_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same image with and without defects: the noise and the metal stay, only marks come on top."""
    settings = synthetic._settings()
    params = Parameters(60, 9, 5)
    shown = [decode_image(render(params, index)[1]) for index in range(60)]
    monkeypatch.setattr(synthetic, "_settings", lambda: settings | {"defect_share": 0.0})
    bare = [decode_image(render(params, index)[1]) for index in range(60)]
    changed = [float(np.mean(one != other)) for one, other in zip(shown, bare, strict=True)]
    assert 20 <= sum(share > 0 for share in changed) <= 40
    assert max(changed) < 0.6


def test_a_larger_corpus_begins_with_the_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SHARD_IMAGES", 8)
    prepare_corpus("corpus_synthetic", images=10, categories=3, seed=4, workers=1)
    prepare_corpus("corpus_synthetic", images=21, categories=3, seed=4, workers=1)
    small, large = load_corpus("corpus_synthetic/n10_k3_s4"), load_corpus("corpus_synthetic/n21_k3_s4")
    assert small["image_id"] == large["image_id"][:10]
    for one, other in zip(small, large.select(range(10)), strict=True):
        assert one["category"] == other["category"]
        np.testing.assert_array_equal(np.asarray(one["image"]), np.asarray(other["image"]))
    assert Counter(large["category"]) == {0: 7, 1: 7, 2: 7}
    assert set(large["licence"]) == {"Apache-2.0"}


def test_any_number_of_processes_gives_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SHARD_IMAGES", 8)
    one = prepare_corpus("corpus_synthetic", images=44, categories=4, workers=1)
    expected = files_of(one.folder)
    assert len(one.manifest.shards) == 6
    two = prepare_corpus("corpus_synthetic", images=44, categories=4, workers=2, force=True)
    assert files_of(two.folder) == expected


def test_it_is_built_on_first_use_and_then_found() -> None:
    name = "corpus_synthetic/n5_k2_s1"
    assert load_corpus(name).num_rows == 5
    changed = store.corpus_folder(name).stat().st_mtime_ns
    assert not prepare_corpus(name).built
    assert load_corpus(name, streaming=True).features == load_corpus(name).features
    assert store.corpus_folder(name).stat().st_mtime_ns == changed


def test_another_renderer_makes_another_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare_corpus("corpus_synthetic", images=3, workers=1).built
    monkeypatch.setattr(synthetic, "renderer_key", lambda: "another")
    assert prepare_corpus("corpus_synthetic", images=3, workers=1).built
    assert not prepare_corpus("corpus_synthetic", images=3, workers=1).built


def test_raw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave out --raw"):
        prepare_corpus("corpus_synthetic", raw=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals and process groups of Linux")
def test_killed_with_its_workers_at_work_it_goes_on(
    fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SHARD_IMAGES", 20)
    name = "corpus_synthetic/n240_k3_s0"
    program = (
        "from datasets_builders import corpus; from datasets_builders.corpus import synthetic; "
        f"synthetic.SHARD_IMAGES = 20; corpus.prepare_corpus({name!r}, workers=2)"
    )
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, env=os.environ | {"AGSSP_BENCH_HOME": str(fresh_home)})
    parts = store.work_folder(name) / "parts"
    deadline = time.monotonic() + 500
    while not list(parts.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "workers outlive their parent"
    finished = {path.name for path in parts.glob("*.json")}
    assert 1 <= len(finished) < 12
    resumed = files_of(prepare_corpus(name, workers=1).folder)
    whole = files_of(prepare_corpus(name, workers=1, force=True).folder)
    assert resumed == whole


def test_the_images_stay_what_they_were() -> None:
    """Pixels of one image in each category: the renderer may change, the images may not."""
    digest = hashlib.sha256()
    for index in range(9):
        digest.update(decode_image(render(Parameters(9, 9, 0), index)[1]).tobytes())
    assert digest.hexdigest() == "5a444782d18933030f50b0f11bb8c739b6ad7ad6da541d48249ee0514248e831"


def test_the_mask_of_an_image_is_where_its_defects_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same images without defects: every pixel in a mask differs, most of those outside do not."""
    settings = synthetic._settings()
    params = Parameters(36, 20, 5)
    ids = [f"corpus_synthetic/s5-k20-{index:08d}" for index in range(36)]
    masks = [synthetic.defect_mask(image_id) for image_id in ids]
    shown = [decode_image(render(params, index)[1]).astype(int).sum(axis=2) for index in range(36)]
    monkeypatch.setattr(synthetic, "_settings", lambda: settings | {"defect_share": 0.0})
    bare = [decode_image(render(params, index)[1]).astype(int).sum(axis=2) for index in range(36)]
    assert 10 <= sum(bool(mask.any()) for mask in masks if mask is not None) <= 26
    inside, outside = [], []
    for mask, one, other in zip(masks, shown, bare, strict=True):
        assert mask is not None
        assert mask.dtype == bool
        assert mask.shape == one.shape
        changed = one != other
        assert changed.any() == mask.any()
        inside.append(changed[mask])
        outside.append(changed[~mask])
    assert np.concatenate(inside).mean() > 0.97
    assert np.concatenate(outside).mean() < 0.05


@pytest.mark.parametrize(
    "image_id", ["x_sdd/a.jpg", "corpus_synthetic/s0-k0-1", "", "corpus_synthetic/s0-k9-000000001x"]
)
def test_other_images_have_no_mask(image_id: str) -> None:
    assert synthetic.defect_mask(image_id) is None
