"""Detector pretraining on pseudo boxes (paper section 4.2): neck and head learn to find anomalies, as one class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp.recipes import DetectorPretraining
from baselines import openmmlab
from baselines.backbones import Backbone
from baselines.freezing import freeze_stages
from baselines.weights import LoadReport, LocalWeights, save

openmmlab.activate()

from baselines.detectors import count_parameters
from baselines.training.checkpoints import remove_progress
from baselines.training.data import train_loader
from baselines.training.detector import (
    InitialWeights,
    detector_runner,
    final_weights,
    moving_average,
    new_detector,
    prepare_process,
)
from baselines.training.hooks import EpochRecorder, History, TrainingEvent

if TYPE_CHECKING:
    import datasets

STAGE_VERSION = 2
"""Raised when a change of this code changes the weights that the same settings give."""

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class DetectorResult:
    """A finished detector pretraining.

    Attributes:
        weights: The weights of the whole detector (averaged, where the recipe has an average), under its state's names.
        curve: One entry an epoch: epoch, losses by name, lr.
        boxes: Boxes it was trained on.
        negatives: Images without boxes.
        parameters: Trainable parameters: those of the frozen stages are not among them.
        seconds: Wall time over all interruptions.
        resumes: How often the training was taken up again.
        load_report: What became of the backbone's weights; None where there were none.
    """

    weights: Path
    curve: list[dict[str, Any]]
    boxes: int
    negatives: int
    parameters: int
    seconds: float
    resumes: int
    load_report: LoadReport | None


def pretrain_detector(
    *,
    backbone: Backbone,
    detector: str,
    images: datasets.Dataset,
    recipe: DetectorPretraining,
    init: LocalWeights | None,
    seed: int,
    folder: Path,
    workers: int,
    on_event: Callable[[TrainingEvent], None],
) -> DetectorResult:
    """Trains a detector on pseudo boxes; images without boxes stay in as negatives.

    A training that was killed goes on from its last stored epoch when called again with the same folder, with the same
    result as without the interruption.

    Args:
        backbone: The detector's backbone.
        detector: A name of `baselines.detectors.DETECTORS`.
        images: In the detection schema with one class, from `BoxStore.as_detection_dataset`.
        recipe: How it is trained.
        init: The pretrained backbone; None begins with random values (then nothing may be frozen).
        seed: Seeds initialisation, order of images and augmentation.
        folder: Holds the state and the weights of this training and of no other.
        workers: Data-loading processes; the rest of the cores compute.
        on_event: Told after iterations.

    Raises:
        UserError: The weights do not fit the backbone.
        ValueError: Stages of a random backbone would be frozen.
        TrainingDivergedError: The loss stopped being a number.
    """
    if init is None and recipe.frozen_stages:
        raise ValueError("a backbone of random values must not be frozen")
    prepare_process(seed, workers)
    model: Any = new_detector(detector, backbone, len(_classes(images)), recipe)
    freeze_stages(model.backbone, backbone.name, recipe.frozen_stages)
    counts = [len(row["objects"]["bbox"]) for row in images.select_columns("objects")]
    history = History()
    ema_hook = moving_average(recipe)
    initial = InitialWeights(init, "backbone") if init is not None else None
    runner = detector_runner(
        model=model,
        recipe=recipe,
        length=recipe.length(len(images)),
        loader=train_loader(images, recipe, workers=workers, seed=seed, detector=detector),
        folder=folder,
        seed=seed,
        ema_hook=ema_hook,
        recorder=EpochRecorder(folder, seed, history, on_event, ema_hook),
        hooks=[] if initial is None else [initial],
    )
    runner.train()
    weights = folder / WEIGHTS
    header = {"scope": "detector", "backbone": backbone.id, "detector": detector, "classes": _classes(images)}
    save(weights, final_weights(model, ema_hook), header)
    remove_progress(folder)
    return DetectorResult(
        weights=weights,
        curve=history.curve,
        boxes=sum(counts),
        negatives=counts.count(0),
        parameters=count_parameters(model),
        seconds=history.seconds,
        resumes=history.resumes,
        load_report=initial.report if initial is not None else None,
    )


def _classes(images: datasets.Dataset) -> list[str]:
    return list(images.features["objects"]["category"].feature.names)
