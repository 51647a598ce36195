"""Faster R-CNN and DINO in training: rates, transforms, learning, resumption, from pretraining into finetuning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from agssp import recipes
from baselines import backbones, openmmlab, weights

openmmlab.activate()

from agssp.detector_pretraining import pretrain_detector
from baselines.detectors import DETECTORS, architecture
from baselines.training import hooks as training_hooks
from baselines.training.data import DefectDataset, train_pipeline
from baselines.training.hooks import StepRates, TrainingEvent
from baselines.training.recipes import Augmentation, StepSchedule, Warmup
from benchmark import finetune as stage
from benchmark import protocol

MMDET = ("faster_rcnn", "dino")
NANO = backbones.get("csp_darknet", "n")
PLAIN = {"mosaic": 0.0, "mosaic_off_epochs": 0, "scale": 0.0, "hsv": (0.0, 0.0, 0.0), "flip": 0.0}


def recipe(detector: str, **changes: Any) -> protocol.Finetune:
    settings = protocol.load("mock-v1").recipe("csp_darknet", detector).model_dump()
    settings |= {"batch_size": 8, "epochs": 3, "validation": {"every_epochs": 2}}
    return protocol.Finetune.model_validate(settings | changes)


def train(
    folder: Path, train_split: Any, validation_split: Any, detector: str, **options: Any
) -> stage.FinetuneResult:
    folder.mkdir(exist_ok=True)
    usual = {"recipe": recipe(detector), "seed": 0, "on_event": lambda event: None}
    return stage.finetune(
        backbone=NANO,
        detector=detector,
        train=train_split,
        validation=validation_split,
        folder=folder,
        workers=0,
        **(usual | options),
    )


def numbers(result: stage.FinetuneResult) -> dict[str, Any]:
    return {
        "curve": result.curve,
        "last": (result.last.epoch, result.last.metrics, result.last.detections.sha256()),
        "best": (result.best.epoch, result.best.metrics, result.best.detections.sha256()),
    }


def test_step_rates_warm_up_and_fall_at_their_milestones() -> None:
    groups = [{"lr": lr, "momentum": 0.9} for lr in (1.0, 1.0, 1.0, 0.1, 0.1, 0.1)]
    runner = SimpleNamespace(
        optim_wrapper=SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups)),
        train_dataloader=range(10),
    )
    warmup = Warmup(epochs=0.2, min_iterations=4, bias_lr=0.5, momentum=0.8)
    hook = StepRates(StepSchedule(type="steps", milestones=(2, 3)), warmup)
    hook.before_train(runner)
    measured = []
    for iteration in range(50):
        runner.iter, runner.epoch = iteration, iteration // 10
        hook.before_train_iter(runner, 0)
        measured.append([group["lr"] for group in groups])
        assert groups[0]["momentum"] == pytest.approx(0.8 + 0.1 * min(iteration / 4, 1))
    weights_, biases, lower = (np.array([rates[place] for rates in measured]) for place in (0, 2, 3))
    expected = [0, 0.25, 0.5, 0.75] + [1.0] * 16 + [0.1] * 10 + [0.01] * 20
    np.testing.assert_allclose(weights_, expected)
    np.testing.assert_allclose(biases[:5], [0.5, 0.625, 0.75, 0.875, 1.0])
    np.testing.assert_allclose(biases[4:], expected[4:])
    np.testing.assert_allclose(lower, 0.1 * np.array(expected))


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": {"type": "steps", "milestones": [2]}, "epochs": None, "iterations": 10},
        {
            "optimizer": {"type": "AdamW", "lr": 0.1, "weight_decay": 0.0, "backbone_factor": 0.1},
            "warmup": {"epochs": 0, "min_iterations": 5, "bias_lr": 0.1, "momentum": 0.8},
        },
    ],
)
def test_settings_that_cannot_be_together_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"milestones are epochs|knows no backbone_factor"):
        recipe("dino", **change)


def test_without_augmentation_an_image_is_only_letterboxed(tiny_train) -> None:
    dataset = DefectDataset(
        tiny_train, 64, train_pipeline(64, Augmentation(**PLAIN), mosaic=True), test_mode=False
    )
    flipping = Augmentation(**(PLAIN | {"flip": 1.0}))
    flipped = DefectDataset(tiny_train, 64, train_pipeline(64, flipping, mosaic=True), test_mode=False)
    for index in range(4):
        image = dataset.get_data_info(index)["img"]
        draw, mirrored = dataset[index], flipped[index]
        np.testing.assert_array_equal(draw["inputs"].numpy(), image.transpose(2, 0, 1))
        np.testing.assert_array_equal(mirrored["inputs"].numpy(), image[:, ::-1].transpose(2, 0, 1))
        assert draw["data_samples"].img_shape == (64, 64)
        boxes = draw["data_samples"].gt_instances.bboxes.tensor
        expected = [[x, y, x + w, y + h] for x, y, w, h in tiny_train[index]["objects"]["bbox"]]
        torch.testing.assert_close(boxes, torch.tensor(expected).reshape(-1, 4))


@pytest.mark.parametrize("name", recipes.names())
def test_pretraining_and_finetuning_agree_on_the_size(name: str) -> None:
    """Otherwise the weights of one would not fit the other."""
    for detector in DETECTORS:
        for family in backbones.names():
            before = recipes.detector_pretraining(name, family, detector)
            after = protocol.load(name).recipe(family, detector)
            assert before.size == after.size
            assert (architecture(detector, before.size) is None) == (detector == "yolov8")
            assert before.image_size == after.image_size


@pytest.mark.slow
@pytest.mark.parametrize("detector", MMDET)
def test_killed_training_ends_where_the_undisturbed_one_does(
    tmp_path, monkeypatch, tiny_train, tiny_validation, detector
) -> None:
    monkeypatch.setattr(training_hooks, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(training_hooks, "STORE_SECONDS", 0.0)
    steps = {"ema": None, "schedule": {"type": "steps", "milestones": [2]}}
    options = {"recipe": recipe(detector, **(steps if detector == "faster_rcnn" else {}))}
    undisturbed = train(tmp_path / "undisturbed", tiny_train, tiny_validation, detector, **options)

    def interrupt(event: TrainingEvent) -> None:
        if event.iteration == 5 and not event.validating:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny_train, tiny_validation, detector, **options, on_event=interrupt)
    result = train(tmp_path / "run", tiny_train, tiny_validation, detector, **options)
    assert result.resumes == 1
    assert numbers(result) == numbers(undisturbed)


@pytest.mark.slow
def test_the_loss_of_faster_rcnn_falls(tmp_path, tiny_train, tiny_validation) -> None:
    adam = {"type": "AdamW", "lr": 0.002, "weight_decay": 0.05}
    longer = recipe(
        "faster_rcnn", epochs=40, optimizer=adam, validation={"every_epochs": 40}, augmentation=PLAIN
    )
    result = train(tmp_path / "run", tiny_train, tiny_validation, "faster_rcnn", recipe=longer)
    losses = [point["losses"]["loss"] for point in result.curve]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("detector", MMDET)
def test_a_detector_pretrained_on_one_class_is_finetuned_on_two(
    tmp_path, tiny_train, tiny_validation, detector
) -> None:
    import datasets

    features = tiny_train.features.copy()
    features["objects"] = {
        **features["objects"], "category": datasets.List(datasets.ClassLabel(names=["defect"]))
    }  # fmt: skip

    def one_class(row: dict[str, Any]) -> dict[str, Any]:
        return {"objects": row["objects"] | {"category": [0] * len(row["objects"]["category"])}}

    folder = tmp_path / "pretraining"
    folder.mkdir()
    pretrained = pretrain_detector(
        backbone=NANO,
        detector=detector,
        images=tiny_train.map(one_class, features=features),
        recipe=recipes.detector_pretraining("mock-v1", "csp_darknet", detector).model_copy(
            update={"frozen_stages": 0}
        ),
        init=None,
        seed=0,
        folder=folder,
        workers=0,
        on_event=lambda event: None,
    )
    assert pretrained.negatives == 4
    given = weights.resolve(pretrained.weights)
    result = train(
        tmp_path / "run", tiny_train, tiny_validation, detector, recipe=recipe(detector, epochs=1),
        weights=given, scope="detector",
    )  # fmt: skip
    assert result.weights is not None
    assert (result.weights.missing, result.weights.unexpected) == ((), ())
    parts = ("fc_cls", "fc_reg") if detector == "faster_rcnn" else ("cls_branches", "label_embedding")
    assert result.weights.reinitialised
    assert all(any(part in name for part in parts) for name in result.weights.reinitialised)
