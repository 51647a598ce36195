"""Finetuning and evaluating one detector on one dataset by the protocol's recipe, run by mmengine's Runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from baselines import openmmlab

openmmlab.activate()

from mmengine.evaluator import Evaluator

from baselines.backbones import Backbone
from baselines.detectors import count_parameters
from baselines.freezing import freeze_stages
from baselines.training import precision
from baselines.training.checkpoints import remove_progress
from baselines.training.data import train_loader, validation_loader
from baselines.training.detector import (
    InitialWeights,
    detector_runner,
    moving_average,
    new_detector,
    prepare_process,
)
from baselines.training.hooks import TrainingEvent
from baselines.training.resources import Peak, PeakMemory
from baselines.weights import LoadReport, LocalWeights
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

__all__ = ["STAGE_VERSION", "FinetuneResult", "Outcome", "finetune", "finish"]

STAGE_VERSION = 2
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
        precision: `bf16` or `fp32`: what the network computed in, as recipe and machine allowed.
        weights: What became of the pretrained weights; None where there were none.
    """

    last: Outcome
    best: Outcome
    curve: list[dict[str, Any]]
    parameters: int
    seconds: float
    peak: Peak
    resumes: int
    precision: Literal["fp32", "bf16"]
    weights: LoadReport | None


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
    weights: LocalWeights | None = None,
    scope: str = "backbone",
) -> FinetuneResult:
    """Trains a detector from random or pretrained weights and evaluates it.

    A training that was killed goes on from its last finished epoch when called again with the same folder; the
    result is the same as without the interruption (same machine, same number of threads).

    Args:
        backbone: The detector's backbone.
        detector: A name of `baselines.detectors.DETECTORS`.
        recipe: The protocol's recipe for this backbone and detector.
        train: Training split in the detection schema.
        validation: Validation split.
        seed: Seeds initialisation, order of images and augmentation.
        folder: Holds the state, weights and detections of this training and of no other.
        workers: Data-loading processes; the rest of the cores compute.
        on_event: Told after iterations and at each validation.
        weights: Pretrained weights to begin with; None for random values.
        scope: What of the weights is taken: `backbone`, or `detector` for everything but the class outputs.

    Returns:
        Metrics and detections at the last and at the best epoch.

    Raises:
        UserError: The weights do not fit; see `baselines.weights.load`.
        TrainingDivergedError: The loss stopped being a number.
    """
    prepare_process(seed, workers)
    ground_truth = GroundTruth.from_dataset(validation)
    model = new_detector(detector, backbone, len(ground_truth.classes), recipe)
    freeze_stages(model.get_submodule("backbone"), backbone.name, recipe.frozen_stages)
    length = recipe.length(len(train))
    ema_hook = moving_average(recipe)
    metric = DetectionMetric(ground_truth, validation["image_id"][:])
    history = FinetuneHistory()
    initial = InitialWeights(weights, scope) if weights is not None else None
    end_phase = length.epochs - recipe.validation.every_epoch_at_end
    intervals = [(end_phase, 1)] if recipe.validation.every_epoch_at_end else None
    runner = detector_runner(
        model=model,
        recipe=recipe,
        length=length,
        loader=train_loader(train, recipe, workers=workers, seed=seed, detector=detector),
        folder=folder,
        seed=seed,
        ema_hook=ema_hook,
        recorder=FinetuneRecorder(folder, seed, ema_hook, metric, history, on_event),
        hooks=[] if initial is None else [initial],
        train_cfg={
            "val_interval": recipe.validation_interval(length.epochs),
            "dynamic_intervals": intervals,
        },
        val_dataloader=validation_loader(validation, recipe),
        val_cfg={},
        val_evaluator=Evaluator(metric),
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
        precision=precision.resolve(recipe.mixed_precision),
        weights=initial.report if initial is not None else None,
    )


def finish(folder: Path, result: FinetuneResult) -> None:
    """Forgets how the training got there, once its record is stored; weights and detections of the result stay."""
    remove_progress(folder)
    epochs = (result.last.epoch, result.best.epoch)
    kept = {file(folder, epoch) for epoch in epochs for file in (detections_file, weights_file)}
    for path in set(folder.glob("epoch-*")) - kept:
        path.unlink()


def _outcome(folder: Path, epoch: int, ground_truth: GroundTruth) -> Outcome:
    """Reads an epoch's detections back: metrics always come from what is stored."""
    detections = Detections.load(detections_file(folder, epoch))
    return Outcome(epoch, evaluate(ground_truth, detections), detections, weights_file(folder, epoch))
