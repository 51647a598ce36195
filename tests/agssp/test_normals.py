from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from map_cases import PlainSource

from agssp import normals
from agssp.map_inputs import EncodedImage, MapInput, open_images
from agssp.map_sources import open_source
from agssp.normals import Rule, choose, loneliness, most_different
from datasets_builders.errors import UserError


class FewImages:
    """Two categories; an image is one pixel that tells its number."""

    name, split = "few", "train"

    def __init__(self, count: int = 40, order: Sequence[int] | None = None) -> None:
        numbers = order if order is not None else range(count)
        self.ids = [f"image {number:03d}" for number in numbers]
        self.categories = [("even", "odd")[number % 2] for number in numbers]

    def identity(self) -> dict[str, Any]:
        return {"name": "few"}

    def read(self, rows: Sequence[int]) -> list[EncodedImage]:
        raise NotImplementedError

    def mask(self, image: EncodedImage) -> Any:
        raise NotImplementedError

    def labelled_normals(self) -> list[str]:
        return [image_id for image_id in self.ids if int(image_id[-3:]) >= 30]

    def decode(self, rows: Sequence[int]) -> list[MapInput]:
        return [
            MapInput(
                self.ids[row], self.categories[row], np.full((1, 1, 3), int(self.ids[row][-3:]), np.uint8)
            )
            for row in rows
        ]


class Judge(PlainSource):
    """Finds images the more anomalous the higher their number; neighbours in number look alike."""

    zero_shot = True

    def rate(self, category: str, batch: Sequence[MapInput]) -> Any:
        return np.array([one.image[0, 0, 0] for one in batch], np.float32) if self.zero_shot else None

    def embed(self, batch: Sequence[MapInput]) -> np.ndarray:
        angles = np.array([one.image[0, 0, 0] / 50 for one in batch])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def chosen(
    rule: str, shots: int, seed: int = 0, images: FewImages | None = None, source: Any = None
) -> dict[str, list[str]]:
    images = images or FewImages()
    return choose(Rule(rule), shots, seed, images, source or Judge(), images.decode)


def test_the_least_anomalous_that_differ_most() -> None:
    """Of the 8 lowest even numbers (0 to 14) the lowest, and the one farthest from it."""
    assert chosen("auto", 2) == {"even": ["image 000", "image 014"], "odd": ["image 001", "image 015"]}
    assert chosen("auto", 1) == {"even": ["image 000"], "odd": ["image 001"]}
    assert chosen("auto", 0) == {"even": [], "odd": []}


def test_without_an_opinion_the_most_typical_are_taken() -> None:
    source = Judge()
    source.zero_shot = False
    images = FewImages(order=[*range(0, 60, 2), 200, 240, 101])
    with pytest.raises(UserError, match="category odd has 1 images, 2 normal ones"):
        chosen("auto", 2, images=images, source=source)
    images = FewImages(order=[*range(0, 60, 2), 200, 240])
    (numbers,) = chosen("auto", 3, images=images, source=source).values()
    assert len(set(numbers)) == 3
    assert not {"image 200", "image 240"} & set(numbers), "outliers are not typical"


@pytest.mark.parametrize("rule", ["auto", "labelled"])
def test_the_order_of_the_dataset_does_not_matter(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normals, "POOL", 10)
    shuffled = np.random.default_rng(0).permutation(40).tolist()
    assert chosen(rule, 3) == chosen(rule, 3, images=FewImages(order=shuffled))
    assert chosen(rule, 3) != chosen(rule, 3, seed=1)


def test_only_a_pool_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normals, "POOL", 6)
    images = FewImages(count=200)
    looked: list[int] = []
    choose(Rule("auto"), 1, 0, images, Judge(), lambda rows: looked.extend(rows) or images.decode(rows))  # type: ignore[func-returns-value]
    assert len(set(looked)) == 12


def test_labelled_normals_are_those_without_objects() -> None:
    found = chosen("labelled", 5)
    assert {name: len(ids) for name, ids in found.items()} == {"even": 5, "odd": 5}
    assert min(itertools.chain(*found.values())) >= "image 030"
    with pytest.raises(UserError, match="category even has 5 images without objects, 6 are wanted"):
        chosen("labelled", 6)


def test_a_list(tmp_path: Path) -> None:
    path = tmp_path / "normals.txt"
    path.write_text("image 003\n\n  image 004\nimage 005\nimage 006\nimage 006\n")
    assert chosen(str(path), 2) == {
        name: sorted(ids, key=ids.index) for name, ids in chosen(str(path), 2).items()
    }
    assert {name: sorted(ids) for name, ids in chosen(str(path), 2).items()} == {
        "even": ["image 004", "image 006"],
        "odd": ["image 003", "image 005"],
    }
    assert {len(ids) for ids in chosen(str(path), 1).values()} == {1}
    other = tmp_path / "other.txt"
    other.write_text("image 006\nimage 005\nimage 004\nimage 003")
    assert Rule(str(path)).identity() == Rule(str(other)).identity()
    path.write_text("image 003\nimage 999\n")
    with pytest.raises(
        UserError, match=r"lists 1 images that few \(train\) does not have, such as image 999"
    ):
        chosen(str(path), 1)
    path.write_text("image 003\n")
    with pytest.raises(UserError, match="category even has 0 images in the list"):
        chosen(str(path), 1)


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(UserError, match="auto, labelled, or a text file"):
            Rule(str(path))


def test_a_source_that_cannot_choose() -> None:
    with pytest.raises(UserError, match="cannot choose normal images"):
        chosen("auto", 1, source=open_source("oracle"))


def test_the_most_different_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 5)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    taken = most_different(features, 6)
    for count in range(1, 6):
        gaps = [min(1 - float(one @ features[other]) for other in taken[:count]) for one in features]
        assert gaps[taken[count]] == pytest.approx(max(gaps), abs=1e-6)
    assert taken[0] == 0
    assert sorted(most_different(np.ones((4, 1), np.float32), 4)) == [0, 1, 2, 3], (
        "copies are still different images"
    )


def test_loneliness_against_brute_force() -> None:
    rng = np.random.default_rng(1)
    features = rng.standard_normal((20, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    expected = [
        np.mean(sorted(1 - float(one @ other) for place, other in enumerate(features) if place != row)[:8])
        for row, one in enumerate(features)
    ]
    np.testing.assert_allclose(loneliness(features), expected, atol=1e-5)
    assert loneliness(features[:1]).tolist() == [0]


def test_labelled_normals_of_a_real_dataset_have_no_boxes() -> None:
    images = open_images("casting_billet_synthetic", "validation")
    from datasets_builders import load

    truth = {
        row["image_id"] for row in load("casting_billet_synthetic", "validation") if not row["objects"]["id"]
    }
    assert set(images.labelled_normals()) == truth
    assert 0 < len(truth) < len(images.ids)
