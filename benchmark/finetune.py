"""Finetuning and evaluating one detector on one dataset by the protocol's recipe, run by mmengine's Runner."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch

from baselines import openmmlab

openmmlab.activate()

from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook
from mmengine.runner import Runner, set_random_seed
from mmyolo.engine.hooks import YOLOv5ParamSchedulerHook

from baselines.backbones import Backbone
from baselines.detectors import build_detector, count_parameters, detector_config
from baselines.training.checkpoints import remove_progress
from baselines.training.data import train_loader, train_pipeline, validation_loader
from baselines.training.hooks import SwitchPipelineHook, TrainingEvent
from baselines.training.optim import optim_wrapper
from baselines.training.resources import Peak, PeakMemory, set_threads
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, Metrics, evaluate
from benchmark.protocol import Finetune
from benchmark.training_hooks import (
    DetectionMetric,
    FinetuneHistory,
    FinetuneRecorder,
    detections_file,
    weights_file,
)

if TYPE_CHECKING:
    import datasets

__all__ = ["STAGE_VERSION", "FinetuneResult", "Outcome", "finetune", "remove_progress"]

STAGE_VERSION = 1
"""Raised when a change of this code changes the number that the same settings give."""


@dataclass(frozen=True)
class Outcome:
    """The detector at one epoch: its answers on the validation split, their metrics, its weights."""

    epoch: int
    metrics: Metrics
    detections: Detections
    weights: Path


@dataclass(frozen=True)
class FinetuneResult:
    """A finished finetuning.

    Attributes:
        last: After the last epoch.
        best: At the epoch of highest mAP@.5 on the validation split (the paper's choice, and optimistic).
        curve: One entry an epoch (see `History`).
        parameters: Trainable parameters of the detector.
        seconds: Wall time over all interruptions.
        peak: Highest memory use.
        resumes: How often the training was taken up again.
    """

    last: Outcome
    best: Outcome
    curve: list[dict[str, Any]]
    parameters: int
    seconds: float
    peak: Peak
    resumes: int


def finetune(
    *,
    backbone: Backbone,
    detector: str,
    recipe: Finetune,
    train: datasets.Dataset,
    validation: datasets.Dataset,
    seed: int,
    folder: Path,
    workers: int,
    on_event: Callable[[TrainingEvent], None],
) -> FinetuneResult:
    """Trains a detector from its initialisation and evaluates it.

    A training that was killed goes on from its last finished epoch when called again with the same folder; the
    result is the same as without the interruption (same machine, same number of threads).

    Args:
        backbone: The detector's backbone.
        detector: A name of `baselines.detectors.DETECTORS`.
        recipe: The protocol's recipe for this backbone.
        train: Training split in the detection schema.
        validation: Validation split.
        seed: Seeds initialisation, order of images and augmentation.
        folder: Holds the state, weights and detections of this training and of no other.
        workers: Data-loading processes; the rest of the cores compute.
        on_event: Told after iterations and at each validation.

    Returns:
        Metrics and detections at the last and at the best epoch.

    Raises:
        TrainingDivergedError: The loss stopped being a number.
    """
    set_threads(workers)
    cv2.setNumThreads(0)
    # Seeded before anything is built: the initialisation is part of the seed.
    set_random_seed(seed)
    ground_truth = GroundTruth.from_dataset(validation)
    settings = recipe.model_dump()
    model = build_detector(
        detector_config(
            detector,
            backbone,
            len(ground_truth.classes),
            losses=settings["losses"],
            assigner=settings["assigner"],
            test=settings["test"],
        )
    )
    # Convolutions run about a fifth faster on CPUs in this layout; the arithmetic is the same.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    length = recipe.length(len(train))
    augmentation = recipe.augmentation
    ema_hook = EMAHook(
        ema_type="mmdet.ExpMomentumEMA",
        momentum=recipe.ema.momentum,
        gamma=recipe.ema.gamma,
        update_buffers=True,
    )
    ema_hook.priority = 49
    metric = DetectionMetric(ground_truth, validation["image_id"][:])
    history = FinetuneHistory()
    recorder = FinetuneRecorder(folder, seed, ema_hook, metric, history, on_event)
    plain = Compose(train_pipeline(recipe.image_size, augmentation, mosaic=False))
    end_phase = length.epochs - recipe.validation.every_epoch_at_end
    intervals = [(end_phase, 1)] if recipe.validation.every_epoch_at_end else None
    runner = Runner(
        model=model,
        work_dir=str(folder),
        experiment_name=secrets.token_hex(8),
        train_dataloader=train_loader(train, recipe, workers=workers, seed=seed),
        train_cfg={
            "by_epoch": True,
            "max_epochs": length.epochs,
            "val_interval": recipe.validation_interval(length.epochs),
            "dynamic_intervals": intervals,
        },
        optim_wrapper=optim_wrapper(model, recipe),
        val_dataloader=validation_loader(validation, recipe),
        val_cfg={},
        val_evaluator=Evaluator(metric),
        default_hooks={
            "logger": None,
            "checkpoint": None,
            "timer": None,
            "param_scheduler": YOLOv5ParamSchedulerHook(
                scheduler_type=recipe.schedule.type,
                lr_factor=recipe.schedule.final_factor,
                max_epochs=length.epochs,
                warmup_epochs=recipe.warmup.epochs,
                warmup_mim_iter=recipe.warmup.min_iterations,
                warmup_bias_lr=recipe.warmup.bias_lr,
                warmup_momentum=recipe.warmup.momentum,
            ),
        },
        custom_hooks=[
            ema_hook,
            SwitchPipelineHook(length.epochs - augmentation.mosaic_off_epochs, plain),
            recorder,
        ],
        visualizer={"type": "mmengine.Visualizer", "vis_backends": None},
        randomness={"seed": seed, "deterministic": False},
        log_level="ERROR",
    )
    with PeakMemory() as memory:
        runner.train()
    assert history.last_epoch is not None
    assert history.best_epoch is not None
    last = _outcome(folder, history.last_epoch, ground_truth)
    best = (
        last
        if history.best_epoch == history.last_epoch
        else _outcome(folder, history.best_epoch, ground_truth)
    )
    return FinetuneResult(
        last=last,
        best=best,
        curve=history.curve,
        parameters=count_parameters(model),
        seconds=history.seconds,
        peak=memory.peak,
        resumes=history.resumes,
    )


def _outcome(folder: Path, epoch: int, ground_truth: GroundTruth) -> Outcome:
    """Reads an epoch's detections back: metrics always come from what is stored."""
    detections = Detections.load(detections_file(folder, epoch))
    return Outcome(epoch, evaluate(ground_truth, detections), detections, weights_file(folder, epoch))
