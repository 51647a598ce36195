"""Protocols: complete, versioned, and hashed by what changes a number."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from baselines import backbones
from baselines.detectors import DETECTORS, architecture
from benchmark import protocol
from datasets_builders import registry
from datasets_builders.errors import UserError

ALL = protocol.names()


@pytest.mark.parametrize("name", ALL)
def test_names_datasets_and_variants_exist(name: str) -> None:
    loaded = protocol.load(name)
    assert loaded.id == name
    assert set(loaded.variants) <= set(backbones.names())
    for backbone, variant in loaded.variants.items():
        backbones.get(backbone, variant)
        for detector in DETECTORS:
            recipe = loaded.recipe(backbone, detector)
            assert (architecture(detector, recipe.size) is None) == (detector == "yolov8")
    for dataset in loaded.datasets:
        card = registry.card(dataset)
        assert (registry.card(card.dataset).origin == "procedural") == loaded.procedural


def test_paper_protocol_is_the_papers() -> None:
    paper = protocol.load("paper-v1")
    recipe = paper.recipe("csp_darknet", "yolov8")
    assert (recipe.image_size, recipe.epochs, recipe.batch_size) == (640, 500, 32)
    assert paper.recipe("swin", "yolov8").batch_size == 14
    assert recipe.optimizer.model_dump() == {
        "type": "SGD", "lr": 0.0025, "weight_decay": 0.0005, "momentum": 0.937, "nesterov": True
    }  # fmt: skip
    assert recipe.warmup.min_iterations == 1000
    assert recipe.augmentation.mosaic_off_epochs == 10
    # 530 training images: 17 iterations an epoch, a warm-up of 59 epochs.
    length = recipe.length(530)
    assert (length.iterations_per_epoch, recipe.validation_interval(length.epochs)) == (17, 10)
    assert math.ceil(recipe.warmup.min_iterations / length.iterations_per_epoch) == 59


def test_hash_follows_what_changes_a_number_and_nothing_else() -> None:
    mini = protocol.load("mini-v1")
    retitled = mini.model_copy(update={"title": "another"})
    reestimated = mini.model_copy(
        update={"estimate": mini.estimate.model_copy(update={"seconds": {"x": 1.0}})}
    )
    assert mini.sha256("yolov8") == retitled.sha256("yolov8") == reestimated.sha256("yolov8")
    longer = mini.finetune.model_copy(update={"batch_size": mini.finetune.batch_size + 1})
    assert mini.model_copy(update={"finetune": longer}).sha256("yolov8") != mini.sha256("yolov8")


def test_paper_protocol_trains_the_other_detectors_as_the_paper_does() -> None:
    paper = protocol.load("paper-v1")
    for backbone in backbones.names():
        faster, dino = paper.recipe(backbone, "faster_rcnn"), paper.recipe(backbone, "dino")
        assert (faster.batch_size, faster.epochs, faster.image_size) == (12, 500, 640)
        assert (faster.optimizer.type, faster.optimizer.lr) == ("SGD", 0.01)
        assert faster.schedule.milestones == (400, 450)
        assert (dino.batch_size, dino.epochs, dino.image_size) == (6, 500, 640)
        assert (dino.optimizer.type, dino.optimizer.lr, dino.optimizer.backbone_factor) == (
            "AdamW",
            0.0001,
            0.1,
        )
        assert (dino.schedule.milestones, dino.clip_grad_norm) == ((400,), 0.1)
        assert faster.ema is dino.ema is None


def test_another_detectors_settings_change_neither_recipe_nor_hash_of_yolov8() -> None:
    mini = protocol.load("mini-v1")
    alone = mini.model_copy(update={"detectors": {}})
    assert alone.recipe("swin", "yolov8") == mini.recipe("swin", "yolov8")
    assert alone.sha256("yolov8") == mini.sha256("yolov8")
    assert len({mini.sha256(detector) for detector in DETECTORS}) == 3


GOLDEN = {
    ("mini-v1", "yolov8"): "98f0f3b445f98caf45e3b4ad158ac8affffe9ea12418210382243fafdc290063",
    ("mini-v1", "faster_rcnn"): "a4f86959cd5f59f2038eb3d320039e68eb7a04e485a17578e5d5d0fa28ef24b5",
    ("mini-v1", "dino"): "3cd8d0d6b6c6a0e37ae775a6e75a5539d3a92f7458dd641cf4cf5074ed4f34b8",
    ("paper-v1", "yolov8"): "fa2a074c257c263e39308fee8131ed2718098d3931b381f6959e82ed7a6bd920",
    ("paper-v1", "faster_rcnn"): "4916b4399e9c2e5908bbc8beaa91c7c56ae914e072c562b03d1e1e4f85c324fb",
    ("paper-v1", "dino"): "716cc9ec71891b3de4b17f7bdc78f6694645775ff5f687f2d43c9b66e424b2ad",
}
"""Of `mock-v1` none: its numbers mean nothing, and it may change at any time."""


@pytest.mark.parametrize(
    ("name", "detector"), [(name, d) for name in ALL if name != "mock-v1" for d in DETECTORS]
)
def test_a_changed_setting_raises_the_version(name: str, detector: str) -> None:
    assert protocol.load(name).sha256(detector) == GOLDEN.get((name, detector)), (
        f"{name} has other settings for {detector} than when it was published. Store them as the next version, in a"
        " file of its own, and say in benchmark/invalid_protocols.yaml why the old one no longer counts, if so."
    )


def test_list_of_invalid_versions_is_well_formed(monkeypatch) -> None:
    for name, versions in protocol._invalid().items():
        assert name in {other.rpartition("-v")[0] for other in ALL}
        assert all(isinstance(version, int) and reason.strip() for version, reason in versions.items())
    assert protocol.invalid_reason("mini", 1) is None
    monkeypatch.setattr(protocol, "_invalid", lambda: {"mini": {1: "wrong"}})
    assert [protocol.invalid_reason("mini", version) for version in (1, 2)] == ["wrong", None]
    assert protocol.invalid_reason("paper", 1) is None


@given(images=st.integers(1, 5000), batch=st.integers(1, 64), iterations=st.integers(1, 5000))
def test_length_in_iterations_is_kept_within_half_an_epoch(images: int, batch: int, iterations: int) -> None:
    recipe = protocol.load("mini-v1").finetune.model_copy(
        update={"batch_size": batch, "iterations": iterations, "epochs": None}
    )
    length = recipe.length(images)
    assert length.iterations_per_epoch == math.ceil(images / batch)
    assert length.epochs == 1 or abs(length.iterations - iterations) <= length.iterations_per_epoch / 2
    assert 1 <= recipe.validation_interval(length.epochs) <= length.epochs


@pytest.mark.parametrize(
    "change", [{"epochs": 3, "iterations": 5}, {"image_size": 100}, {"unknown": 1}, {"clip_grad_norm": 0}]
)
def test_impossible_recipes_are_refused(change: dict[str, object]) -> None:
    settings = protocol.load("mini-v1").finetune.model_dump() | change
    with pytest.raises(ValidationError):
        protocol.Finetune.model_validate(settings)


def test_unknown_protocol_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'mini-v1'"):
        protocol.load("mini-v2")


def test_a_file_whose_name_and_version_disagree_is_refused(tmp_path, monkeypatch) -> None:
    content = yaml.safe_load((protocol._FOLDER / "mini-v1.yaml").read_text())
    (tmp_path / "mini-v7.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(protocol, "_FOLDER", tmp_path)
    with pytest.raises(UserError, match="declares 'mini-v1'"):
        protocol.load("mini-v7")
