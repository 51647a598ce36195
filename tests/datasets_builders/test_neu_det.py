"""The real NEU-DET, as its owners publish it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import defusedxml.ElementTree
import numpy as np
import pytest
from PIL import Image

from datasets_builders import content, prepared, registry
from datasets_builders.building import undecoded
from datasets_builders.neu_det import GROUPS_FILE
from datasets_builders.storage import content_key

pytestmark = pytest.mark.real_data

PER_CLASS = {
    "crazing": 689,
    "inclusion": 1011,
    "patches": 881,
    "pitted_surface": 432,
    "rolled-in_scale": 628,
    "scratches": 548,
}


@pytest.fixture(scope="module")
def raw(raw_data: Path) -> Path:
    return raw_data / "raw" / "neu_det"


@pytest.fixture(autouse=True)
def neu_det(raw: Path, agssp_home: Path) -> prepared.Prepared:
    return prepared.prepare("neu_det", raw)


def test_counts(neu_det: prepared.Prepared) -> None:
    manifest = neu_det.manifest
    assert (manifest.images, manifest.boxes, manifest.masks) == (1800, 4189, 900)
    assert manifest.per_class == PER_CLASS


def test_splits_are_disjoint_and_never_move(neu_det: prepared.Prepared) -> None:
    train = prepared.load("neu_det", "train")["image_id"]
    validation = prepared.load("neu_det", "validation")["image_id"]
    assert (len(train), len(validation)) == (1267, 533)
    assert set(train).isdisjoint(validation)
    assert content_key(sorted(train)) == "48ff0cf8bd42867b65e10d0e6cb6328f004edd6cec48ba833d9128a92e708f99"
    assert (
        content_key(sorted(validation)) == "820d373d564dbc431c946868b4c9191054a9d7bf4665e3c1c0e4e4b060c81578"
    )
    assert neu_det.manifest.fingerprint == "1a04233b1f66ea495dbb24c65416ab4852e0a259d018cea95452fb7e6b2071e0"


def test_pictures_of_the_same_metal_stay_in_one_split(neu_det: prepared.Prepared) -> None:
    side = {
        image_id: split
        for split in ("train", "validation")
        for image_id in prepared.load("neu_det", split)["image_id"]
    }
    groups = json.loads(GROUPS_FILE.read_text(encoding="utf-8"))
    assert (len(groups), sum(map(len, groups)), len({i for group in groups for i in group})) == (
        291,
        1216,
        1216,
    )
    assert [group for group in groups if len({side[image_id] for image_id in group}) > 1] == []


def test_every_class_is_on_both_sides(neu_det: prepared.Prepared) -> None:
    """Groups are large (up to 54 of a class's 300 images); the hash must not starve a side of a class."""
    kinds = [image_id.rpartition("_")[0] for image_id in prepared.load("neu_det", "validation")["image_id"]]
    assert Counter(kinds) == {
        "crazing": 97,
        "inclusion": 62,
        "patches": 90,
        "pitted_surface": 103,
        "rolled-in_scale": 76,
        "scratches": 105,
    }


def test_subsets(neu_det: prepared.Prepared) -> None:
    small, larger = (prepared.load(f"neu_det/{name}", "train") for name in ("mini50", "mini100"))
    assert (len(small), len(larger)) == (50, 100)
    assert (
        set(small["image_id"]) < set(larger["image_id"]) < set(prepared.load("neu_det", "train")["image_id"])
    )
    assert {c for objects in small["objects"] for c in objects["category"]} == set(range(6))
    assert (
        content_key(small["image_id"][:])
        == "bc08df9016ab7bf8791dc65036f61cc3caaa423c98fe549ba307133a2344342f"
    )


def test_fingerprints_are_recomputed_from_the_rows() -> None:
    classes = registry.card("neu_det").classes
    for name in ("neu_det", "neu_det/mini50"):
        digests = [
            content.example_digest(split, row, classes)
            for split in ("train", "validation")
            for row in undecoded(prepared.load(name, split))
        ]
        assert content.dataset_fingerprint(classes, digests) == prepared.fingerprint(name)


def test_rows_are_the_owners_files(raw: Path) -> None:
    """Every 37th row against the files, read here by other means."""
    validation = undecoded(prepared.load("neu_det", "validation"))
    for row in validation.select(range(0, len(validation), 37)):
        name = row["image_id"]
        jpg = next(path for path in raw.glob(f"*/{name}.jpg"))
        xml = next(path for path in raw.glob(f"*/{name}.xml"))
        assert row["image"]["bytes"] == jpg.read_bytes()
        root = defusedxml.ElementTree.parse(xml).getroot()
        names = [registry.card("neu_det").classes[c] for c in row["objects"]["category"]]
        assert names == [node.text for node in root.iterfind("object/name")]
        for box, node in zip(row["objects"]["bbox"], root.iterfind("object/bndbox"), strict=True):
            left, top, right, bottom = (int(node.findtext(t, "")) for t in ("xmin", "ymin", "xmax", "ymax"))
            assert box == [left, top, right - left, bottom - top]


def test_boxes_are_inside_and_ids_count_up() -> None:
    for split in ("train", "validation"):
        dataset = prepared.load("neu_det", split).select_columns(["objects", "width", "height"])
        ids = []
        for row in dataset:
            boxes = np.array(row["objects"]["bbox"])
            assert (boxes[:, 2:] > 0).all()
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, :2] + boxes[:, 2:] <= [row["width"], row["height"]]).all()
            np.testing.assert_array_equal(row["objects"]["area"], boxes[:, 2] * boxes[:, 3])
            ids += row["objects"]["id"]
        assert ids == list(range(1, len(ids) + 1))


def test_masks_lie_on_their_images(raw_data: Path) -> None:
    """A mask of the wrong image would not fall into the boxes of this one."""
    folder = raw_data / "raw" / "sd900_masks" / "SD-saliency-900" / "Ground truth"
    prefixes = {"inclusion": "In", "patches": "Pa", "scratches": "Sc"}
    inside, chance = [], []
    for row in prepared.load("neu_det", "validation"):
        kind, _, number = row["image_id"].rpartition("_")
        if kind not in prefixes:
            assert row["mask"] is None
            continue
        mask = np.asarray(row["mask"])
        truth = np.asarray(Image.open(folder / f"{prefixes[kind]}_{number}.png"))
        np.testing.assert_array_equal(mask, truth)
        assert np.isin(mask, (0, 255)).all()
        covered = np.zeros(mask.shape, bool)
        for x, y, w, h in np.array(row["objects"]["bbox"]).round().astype(int):
            covered[y : y + h, x : x + w] = True
        inside.append(covered[mask > 0].mean())
        chance.append(covered.mean())
    assert len(inside) > 200
    assert np.mean(inside) > 0.9
    assert np.mean(chance) < 0.5
