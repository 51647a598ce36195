from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_builders import content
from datasets_builders.building import undecoded
from datasets_builders.images import encode_png
from datasets_builders.schema import detection_features

CLASSES = ("a", "b")


def example(image_id: str = "x", seed: int = 0) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return {
        "image": {"bytes": encode_png(pixels), "path": None},
        "image_id": image_id,
        "width": 8,
        "height": 6,
        "objects": {
            "id": [1, 2],
            "bbox": [[0.1, 1.0, 3.0, 2.0], [2.0, 2.0, 1.0, 1.0]],
            "area": [6.0, 1.0],
            "category": [1, 0],
        },
        "mask": None,
    }


def test_hash_split_is_the_documented_formula() -> None:
    for number in range(200):
        digest = hashlib.sha256(f"set:img{number}".encode()).hexdigest()
        expected = "train" if int(digest[:16], 16) < 0.7 * 2**64 else "validation"
        assert content.hash_split("set", f"img{number}", 0.7) == expected


def test_hash_split_meets_its_share_and_differs_between_datasets() -> None:
    def splits(name: str) -> list[str]:
        return [content.hash_split(name, str(n), 0.5) for n in range(4000)]

    assert abs(splits("one").count("train") / 4000 - 0.5) < 0.03
    agreement = np.mean([a == b for a, b in zip(splits("one"), splits("two"), strict=True)])
    assert abs(agreement - 0.5) < 0.03


images = st.dictionaries(
    st.text(min_size=1, max_size=6), st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=40
)


@given(images, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_subset_order_is_complete_stable_and_shows_every_class_early(categories: dict, random: Any) -> None:
    order = content.subset_order("set", categories)
    assert sorted(order) == sorted(categories)
    present = {c for found in categories.values() for c in found}
    assert {c for i in order[: len(present)] for c in categories[i]} == present
    shuffled = list(categories.items())
    random.shuffle(shuffled)
    assert content.subset_order("set", dict(shuffled)) == order


def digest(row: dict[str, Any], split: str = "train") -> str:
    return content.example_digest(split, row, CLASSES)


def test_fingerprint_changes_with_everything_that_matters_and_nothing_else() -> None:
    base = digest(example())
    other = []
    for change in (
        lambda r: r.update(image_id="y"),
        lambda r: r.update(image=example(seed=1)["image"]),
        lambda r: r.update(width=9),
        lambda r: r["objects"]["bbox"][0].__setitem__(2, 3.5),
        lambda r: r["objects"]["category"].__setitem__(0, 0),
        lambda r: (r["objects"]["bbox"].pop(), r["objects"]["category"].pop()),
    ):
        row = example()
        change(row)
        other.append(digest(row))
    other.append(digest(example(), "validation"))
    assert len({base, *other}) == len(other) + 1

    same = copy.deepcopy(example())
    same["objects"]["id"] = [7, 8]
    same["mask"] = {"bytes": b"any", "path": None}
    same["objects"]["bbox"][0][0] = float(np.float32(0.1))  # as it comes back from a file
    assert digest(same) == base


def test_dataset_fingerprint_ignores_order_only() -> None:
    digests = [digest(example(str(n))) for n in range(3)]
    whole = content.dataset_fingerprint(CLASSES, digests)
    assert content.dataset_fingerprint(CLASSES, reversed(digests)) == whole
    assert content.dataset_fingerprint(CLASSES, digests[:2]) != whole
    assert content.dataset_fingerprint(("b", "a"), digests) != whole


@pytest.mark.parametrize("reader", ["from_parquet", "load_dataset"])
def test_fingerprint_and_features_survive_parquet(tmp_path: Path, reader: str) -> None:
    rows = [example("p"), example("q", seed=3)]
    rows[1]["objects"] = {"id": [], "bbox": [], "area": [], "category": []}
    rows[1]["mask"] = {"bytes": encode_png(np.zeros((6, 8), np.uint8)), "path": None}
    features = detection_features(CLASSES)
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.to_parquet(tmp_path / "train.parquet")
    path = str(tmp_path / "train.parquet")
    if reader == "from_parquet":
        back = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))
    else:
        back = datasets.load_dataset(
            "parquet", data_files={"train": path}, split="train", cache_dir=str(tmp_path / "cache")
        )
    assert back.features == features
    assert [digest(row) for row in undecoded(back)] == [digest(row) for row in rows]
    assert back[1]["objects"] == {"id": [], "bbox": [], "area": [], "category": []}
    assert back[0]["mask"] is None
    assert back[1]["mask"].size == (8, 6)
