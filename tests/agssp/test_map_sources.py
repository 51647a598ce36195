from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.stats
from map_cases import CORPUS
from PIL import Image

from agssp.map_inputs import EncodedImage, MapInput, open_images
from agssp.map_sources import SourceOptions, open_source
from agssp.mapping import make_maps
from agssp.sources.folder import FolderSource, read_map
from agssp.sources.oracle import touched
from datasets_builders.corpus import load_corpus
from datasets_builders.errors import UserError


class Named:
    """Images that have names only."""

    name, split = "named", "train"

    def __init__(self, *ids: str) -> None:
        self.ids = list(ids)
        self.categories = ["plate"] * len(ids)


def named(*ids: str) -> Any:
    return Named(*ids)


def one(image_id: str, mask: np.ndarray | None = None) -> MapInput:
    return MapInput(image_id, "plate", np.zeros((10, 12, 3), np.uint8), mask)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("kaed:tiny", "Known: folder:DIR, kead:ENCODER"), ("kead", "write kead:ENCODER"), ("oracle:x", "write oracle"),
     ("folder", "write folder:DIR"), ("folder:/nowhere", "no such folder"), ("memory:resnet", "only network is lite0"),
     ("", "Unknown source of maps")],
)  # fmt: skip
def test_sources_that_are_none(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(spec)


def test_options_that_a_source_does_not_take() -> None:
    with pytest.raises(UserError, match="are for kead and winclip, not for oracle"):
        open_source("oracle", options=SourceOptions(precision="fp32"))


# Oracle


@pytest.mark.parametrize("size", [(192, 192), (64, 64), (100, 333), (7, 64), (1, 1), (65, 63)])
def test_cells_that_a_mask_touches_against_brute_force(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random(size) < 0.02
    mask[0, 0] = True
    expected = np.zeros((64, 64), np.float32)
    height, width = size
    for row in range(64):
        for column in range(64):
            top, bottom = row * height / 64, (row + 1) * height / 64
            left, right = column * width / 64, (column + 1) * width / 64
            rows = slice(int(np.floor(top + 1e-9)), int(np.ceil(bottom - 1e-9)))
            columns = slice(int(np.floor(left + 1e-9)), int(np.ceil(right - 1e-9)))
            expected[row, column] = mask[rows, columns].any()
    np.testing.assert_array_equal(touched(mask), expected)


def test_the_oracle_of_a_dataset_shows_its_masks(tmp_path: Path) -> None:
    from datasets_builders import load

    store = make_maps(
        "casting_billet_synthetic", open_source("oracle"), out=tmp_path / "maps", split="validation"
    )
    assert store.normals == {}
    assert "shots" not in store.request
    truth = load("casting_billet_synthetic", "validation")
    for row, image in zip(store, truth, strict=True):
        mask = np.asarray(image["mask"]) > 0
        assert row.image_id == image["image_id"]
        assert row.category == "casting_billet_synthetic"
        assert row.image_score == float(mask.any()) == float(bool(image["objects"]["id"]))
        cells = mask.reshape(64, 3, 64, 3).any(axis=(1, 3))
        np.testing.assert_array_equal(row.map, cells.astype(np.float32))


def test_the_oracle_of_a_procedural_corpus(tmp_path: Path) -> None:
    from datasets_builders.corpus.synthetic import defect_mask

    store = make_maps("corpus_synthetic/n6_k3_s0", open_source("oracle"), out=tmp_path / "maps")
    for row in store:
        mask = defect_mask(row.image_id)
        assert mask is not None
        np.testing.assert_array_equal(row.map, mask.reshape(64, 3, 64, 3).any(axis=(1, 3)).astype(np.float32))
    assert {row.image_score for row in store} == {0.0, 1.0}


def test_the_oracle_needs_masks() -> None:
    images = named("a")
    images.name = "gc10_det"
    with pytest.raises(UserError, match="gc10_det has no masks"):
        open_source("oracle").check(images)
    foreign = EncodedImage("x_sdd/a.jpg", "plate", b"")
    corpus = open_images(CORPUS)
    with pytest.raises(UserError, match="only procedural images know"):
        corpus.mask(foreign)
    dataset = open_images("casting_billet_synthetic", "validation")
    with pytest.raises(UserError, match="has no mask, so its true map is not known"):
        dataset.mask(foreign)


# Random


def test_random_maps_depend_on_seed_and_id_alone() -> None:
    source, again, other = (open_source("random", seed=seed) for seed in (3, 3, 4))
    alone = source.score([one("b")], None)
    together = again.score([one("a"), one("b")], None)
    np.testing.assert_array_equal(alone.maps[0], together.maps[1])
    assert not np.array_equal(together.maps[0], together.maps[1])
    assert not np.array_equal(other.score([one("b")], None).maps, alone.maps)
    assert source.identity() == again.identity() != other.identity()


def test_random_maps_are_smooth_and_uniform() -> None:
    maps = open_source("random").score([one(f"{i}") for i in range(800)], None).maps
    assert scipy.stats.kstest(maps[:, 5, 9], "uniform").pvalue > 0.01
    near = np.corrcoef(maps[:, 5, 5], maps[:, 5, 6])[0, 1]
    far = np.corrcoef(maps[:, 5, 5], maps[:, 12, 13])[0, 1]
    assert near > 0.7
    assert abs(far) < 0.15


# Folder


def scored(folder: Path, *ids: str) -> np.ndarray:
    source = open_source(f"folder:{folder}")
    source.check(named(*ids))
    return source.score([one(image_id) for image_id in ids], None).maps


def test_maps_from_files_of_every_kind(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 7), np.float32)
    (tmp_path / "x_sdd").mkdir()
    np.save(tmp_path / "x_sdd" / "a.jpg.npy", values * 2)
    np.save(tmp_path / "half.npy", values.astype(np.float16))
    Image.fromarray((values * 255).astype(np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray((values * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "float.tif")
    Image.fromarray(values > 0.5).save(tmp_path / "mask.tiff")
    found = scored(tmp_path, "x_sdd/a.jpg", "half", "grey", "deep", "float", "mask")
    assert found.dtype == np.float32
    assert found.shape == (6, 5, 7)
    np.testing.assert_array_equal(found[0], values * 2)
    np.testing.assert_allclose(found[1], values, atol=1e-3)
    np.testing.assert_allclose(found[2], values, atol=1 / 255)
    np.testing.assert_allclose(found[3], values, atol=1 / 65535)
    np.testing.assert_array_equal(found[4], values)
    np.testing.assert_array_equal(found[5], values > 0.5)


def test_maps_of_other_sizes_are_averaged_onto_the_grid(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((192, 256), np.float32)
    np.save(tmp_path / "large.npy", values)
    np.save(tmp_path / "small.npy", np.full((3, 3), 0.25))
    found = scored(tmp_path, "large", "small")
    np.testing.assert_allclose(found[0], values.reshape(64, 3, 64, 4).mean(axis=(1, 3)), atol=1e-5)
    np.testing.assert_allclose(found[1], np.full((64, 64), 0.25))


def test_a_dataset_from_a_folder_of_maps(tmp_path: Path) -> None:
    images = open_images("corpus_synthetic/n6_k3_s0")
    for number, image_id in enumerate(images.ids):
        path = tmp_path / "mine" / f"{image_id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((4, 4), number / 8))
    store = make_maps(images.name, FolderSource(tmp_path / "mine"), out=tmp_path / "maps")
    assert [row.map.max() for row in store] == [row.image_score for row in store] == [i / 8 for i in range(6)]
    np.save(path, np.zeros((4, 4)))
    with pytest.raises(UserError, match=r"source\.content"):
        make_maps(images.name, FolderSource(tmp_path / "mine"), out=tmp_path / "maps")


def test_missing_maps_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    with pytest.raises(UserError, match=r"no map for 7 of 8 images: b, c, d, e, f and 2 more"):
        scored(tmp_path, *"abcdefgh")


@pytest.mark.parametrize(
    "image_id", ["../secret", "/etc/secret", "a/../../secret", "..", "", "a\\..\\b", "a\0b"]
)
def test_names_that_lead_out_of_the_folder(tmp_path: Path, image_id: str) -> None:
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "secret.npy", np.zeros((2, 2)))
    with pytest.raises(UserError, match="cannot be the name of a file"):
        scored(tmp_path / "maps", image_id)


def test_links_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "secret.npy", np.zeros((2, 2)))
    (tmp_path / "maps" / "a.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(UserError, match="leads out of"):
        scored(tmp_path / "maps", "a")


def test_two_maps_of_one_image(tmp_path: Path) -> None:
    for suffix in ("png", "tif"):
        Image.new("L", (4, 4)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(UserError, match=r"several maps of a: a\.png, a\.tif"):
        scored(tmp_path, "a")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def write_header(path: Path, shape: tuple[int, ...]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


@pytest.mark.parametrize("kind", ["pickle", "bomb", "huge", "text", "empty", "zip", "three", "complex", "int",
                                  "nan", "negative", "large", "inf", "none", "rgb", "deep", "cut"])  # fmt: skip
def test_hostile_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("a.png" if kind in ("rgb", "cut") else "a.tif" if kind == "deep" else "a.npy")
    grid = np.full((3, 3), 0.5)
    arrays = {"three": np.zeros((2, 2, 2)), "complex": grid + 1j, "int": np.ones((3, 3), np.int64),
              "nan": np.where(np.eye(3) > 0, np.nan, grid), "negative": grid - 0.6, "large": grid * 5,
              "inf": grid / 0.0 if False else np.full((3, 3), np.inf), "none": np.zeros((0, 3))}  # fmt: skip
    if kind == "pickle":
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    elif kind == "bomb":
        import pickle

        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "huge":
        write_header(path, (10**6, 10**6))
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.touch()
    elif kind == "zip":
        np.savez(tmp_path / "a", grid)
        (tmp_path / "a.npz").rename(path)
    elif kind == "rgb":
        Image.new("RGB", (4, 4)).save(path)
    elif kind == "deep":
        Image.new("I", (4, 4)).save(path)
    elif kind == "cut":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:200])
    else:
        np.save(path, arrays[kind])
    with pytest.raises(UserError, match=r"a\.(npy|png|tif)"):
        read_map(path)
    assert not (tmp_path / "pwned").exists()


def test_opencv_averages_where_it_shrinks() -> None:
    """What the reading of other sizes rests on, at a ratio that is not whole."""
    values = np.random.default_rng(0).random((70, 1)).astype(np.float32)
    edges = np.linspace(0, 70, 65)
    total = np.concatenate([[0], np.cumsum(values[:, 0], dtype=np.float64)])
    expected = np.diff(np.interp(edges, np.arange(71), total)) / (70 / 64)
    found = cv2.resize(values, (1, 64), interpolation=cv2.INTER_AREA)[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


# Images


def test_rows_of_a_corpus_are_read_at_random_places() -> None:
    images = open_images(CORPUS)
    truth = load_corpus(CORPUS)
    names = truth.features["category"].names
    assert images.ids == truth["image_id"][:]
    assert images.categories == [names[category] for category in truth["category"]]
    for rows in ([0], [149], [5, 63, 64, 65, 128], [63], range(150)):
        for row, found in zip(rows, images.read(rows), strict=True):
            assert (found.image_id, found.category) == (images.ids[row], images.categories[row])
            np.testing.assert_array_equal(found.decode().image, np.asarray(truth[row]["image"]))


def test_names_that_are_none() -> None:
    with pytest.raises(UserError, match="Did you mean 'neu_det'"):
        open_images("neu_dett")
    with pytest.raises(UserError, match="is a corpus and has no split"):
        open_images(CORPUS, "validation")
    with pytest.raises(UserError, match="have no labels"):
        open_images(CORPUS).labelled_normals()


def test_images_that_cannot_be_read_are_named() -> None:
    with pytest.raises(UserError, match="Image 'a' cannot be read: not a"):
        EncodedImage("a", "plate", b"no image").decode()
