"""A detector's training as mmengine runs it: the one assembly that pretraining and finetuning share."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from baselines import openmmlab

openmmlab.activate()

from mmengine.dataset import Compose
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner, set_random_seed
from mmyolo.engine.hooks import YOLOv5ParamSchedulerHook
from torch import nn
from torch.utils.data import DataLoader

from baselines.backbones import Backbone
from baselines.detectors import build_detector, detector_config
from baselines.training import averaging, precision
from baselines.training.data import train_pipeline
from baselines.training.hooks import EpochRecorder, StepRates, SwitchPipelineHook
from baselines.training.optim import optim_wrapper
from baselines.training.recipes import DetectorTraining, Length, StepSchedule
from baselines.training.resources import set_threads
from baselines.weights import LoadReport, LocalWeights, load


class InitialWeights(Hook):
    """Loads pretrained weights once the random initialisation is done, before an interrupted training is restored.

    The Runner initialises the model after the hooks' `before_run`: what is loaded there is lost again.

    Args:
        weights: The weights; `report` tells afterwards what became of them.
        scope: `backbone`, or `detector` for neck and head too.
    """

    priority = "VERY_HIGH"

    def __init__(self, weights: LocalWeights, scope: str):
        self._weights, self._scope = weights, scope
        self.report: LoadReport | None = None

    def before_train(self, runner: Runner) -> None:
        """Loads, or refuses."""
        self.report = load(
            runner.model, self._weights, "detector" if self._scope == "detector" else "backbone"
        )


def prepare_process(seed: int, workers: int) -> None:
    """Seeds the generators and shares out the cores, before anything is built: the initialisation is part of a seed."""
    set_threads(workers)
    cv2.setNumThreads(0)
    set_random_seed(seed)


def new_detector(detector: str, backbone: Backbone, num_classes: int, recipe: DetectorTraining) -> nn.Module:
    """Builds a detector as a recipe trains it; its weights are initialised when the training starts."""
    settings = recipe.model_dump()
    model = build_detector(
        detector_config(
            detector,
            backbone,
            num_classes,
            test=settings["test"],
            losses=settings["losses"],
            assigner=settings["assigner"],
            size=recipe.size,
        )
    )
    if precision.resolve(recipe.mixed_precision) == "bf16":
        precision.compute_in_bfloat16(model)
    # Convolutions run about a fifth faster on CPUs in this layout; the arithmetic is the same.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def moving_average(recipe: DetectorTraining) -> EMAHook | None:
    """Returns the hook that averages the weights over the training; None where the recipe has no average."""
    if recipe.ema is None:
        return None
    hook = EMAHook(
        ema_type=averaging.MovingAverage,
        momentum=recipe.ema.momentum,
        gamma=recipe.ema.gamma,
        update_buffers=True,
    )
    hook.priority = 49
    return hook


def detector_runner(
    *,
    model: nn.Module,
    recipe: DetectorTraining,
    length: Length,
    loader: DataLoader,
    folder: Path,
    seed: int,
    ema_hook: EMAHook | None,
    recorder: EpochRecorder,
    hooks: Sequence[Hook] = (),
    train_cfg: dict[str, Any] | None = None,
    **validation: Any,
) -> Runner:
    """Assembles the Runner of a detector's training.

    Args:
        model: From `new_detector`.
        recipe: How it is trained.
        length: The recipe's length for this set of images.
        loader: Training batches, from `baselines.training.data.train_loader`.
        folder: Work folder of this training alone.
        seed: The training's seed.
        ema_hook: From `moving_average`.
        recorder: Seeds epochs, measures, stores the state.
        hooks: Further hooks, such as `InitialWeights`.
        train_cfg: Added to the loop's settings, such as the validation interval.
        **validation: The Runner's `val_dataloader`, `val_cfg` and `val_evaluator`; none of them to train only.
    """
    plain: Callable[[Any], Any] = Compose(
        train_pipeline(recipe.image_size, recipe.augmentation, mosaic=False)
    )
    return Runner(
        model=model,
        work_dir=str(folder),
        experiment_name=secrets.token_hex(8),
        train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": length.epochs, **(train_cfg or {})},
        optim_wrapper=optim_wrapper(model, recipe),
        default_hooks={
            "logger": None,
            "checkpoint": None,
            "timer": None,
            "param_scheduler": _rates(recipe, length),
        },
        custom_hooks=[
            *hooks,
            *([] if ema_hook is None else [ema_hook]),
            SwitchPipelineHook(length.epochs - recipe.augmentation.mosaic_off_epochs, plain),
            recorder,
        ],
        visualizer={"type": "mmengine.Visualizer", "vis_backends": None},
        randomness={"seed": seed, "deterministic": False},
        log_level="ERROR",
        **validation,
    )


def final_weights(model: nn.Module, ema_hook: EMAHook | None) -> dict[str, torch.Tensor]:
    """Returns a training's result as a state: the averaged weights, or the model's own where there is no average."""
    return (model if ema_hook is None else ema_hook.ema_model.module).state_dict()


def _rates(recipe: DetectorTraining, length: Length) -> Hook:
    """Returns the hook that sets learning rates."""
    schedule, warmup = recipe.schedule, recipe.warmup
    if isinstance(schedule, StepSchedule):
        return StepRates(schedule, warmup)
    return YOLOv5ParamSchedulerHook(
        scheduler_type=schedule.type,
        lr_factor=schedule.final_factor,
        max_epochs=length.epochs,
        warmup_epochs=warmup.epochs,
        warmup_mim_iter=warmup.min_iterations,
        warmup_bias_lr=warmup.bias_lr,
        warmup_momentum=warmup.momentum,
    )
