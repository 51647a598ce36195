from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets_builders import prepared, registry
from datasets_builders.building import undecoded
from datasets_builders.images import decode_image, decode_mask
from datasets_builders.storage import file_sha256
from datasets_builders.synthetic import config_names, load_config, render
from datasets_builders.synthetic.builder import as_example
from datasets_builders.synthetic.scenes import Scene

NAME = "steel_pipe_synthetic"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> None:
    """The set with a few images, so that a test can afford to build it."""
    config = load_config(NAME) | {"splits": {"train": 12, "validation": 5}}
    monkeypatch.setattr("datasets_builders.synthetic.builder.load_config", lambda name: config)


def test_every_config_is_in_the_catalogue_with_its_classes() -> None:
    cards = {name: card for name, card in registry.cards().items() if card.origin == "procedural"}
    # Toys are the first scenes of a set that has a config.
    cards = {name: card for name, card in cards.items() if not card.toy}
    assert set(cards) == set(config_names())
    for name, card in cards.items():
        config = load_config(name)
        assert card.classes == tuple(config["classes"])
        assert dict(card.splits) == config["splits"]
        assert card.title == config["title"]


@pytest.mark.usefixtures("small")
def test_load_builds_and_rows_are_the_scenes() -> None:
    assert not prepared.is_ready(NAME)
    boxes = 0
    for split, count in (("train", 12), ("validation", 5)):
        rows = undecoded(prepared.load(NAME, split))
        assert rows["image_id"] == [f"{split}-{index:06d}" for index in range(count)]
        for index, row in enumerate(rows):
            scene = render(NAME, index, split)
            np.testing.assert_array_equal(decode_image(row["image"]["bytes"]), scene.image)
            mask = decode_mask(row["mask"]["bytes"])
            assert row["objects"]["category"] == scene.categories
            assert sorted(np.unique(mask).tolist()) == list(range(len(scene.masks) + 1))
            for number, (box, area) in enumerate(
                zip(row["objects"]["bbox"], row["objects"]["area"], strict=True), start=1
            ):
                exact = scene.masks[number - 1] > 0
                assert exact[mask == number].all()
                assert area == exact.sum()
                x, y, w, h = (int(value) for value in box)
                inside = exact[y : y + h, x : x + w]
                assert inside.sum() == exact.sum()
                assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
                boxes += 1
    assert boxes > 3
    assert prepared.is_ready(NAME)


@pytest.mark.usefixtures("small")
def test_damage_is_repaired_without_raw_data(caplog: pytest.LogCaptureFixture) -> None:
    before = prepared.fingerprint(NAME)
    path = prepared.dataset_folder(registry.card(NAME)) / "train-00000.arrow"
    whole = file_sha256(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert len(prepared.load(NAME, "train")) == 12
    assert "train-00000.arrow: has" in caplog.text
    assert file_sha256(path) == whole
    assert prepared.fingerprint(NAME) == before


def test_later_objects_cover_earlier_ones_in_the_mask_only() -> None:
    masks = [np.zeros((6, 6), np.uint8) for _ in range(2)]
    masks[0][1:4, 1:4] = 1
    masks[1][3:5, 3:6] = 1
    example = as_example("x", Scene(np.zeros((6, 6, 3), np.uint8), masks, [1, 0]), ("a", "b"))
    assert [(o.category, o.bbox, o.area) for o in example.objects] == [
        ("b", (1, 1, 3, 3), 9.0),
        ("a", (3, 3, 3, 2), 6.0),
    ]
    assert isinstance(example.mask, np.ndarray)
    assert np.bincount(example.mask.ravel()).tolist() == [36 - 14, 8, 6]
