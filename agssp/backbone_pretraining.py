"""Pretraining a backbone on a corpus, alone or guided by anomaly maps, run by mmengine's Runner."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch
from mmengine.dist import get_world_size, init_dist, is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, set_random_seed
from torch import nn

from agssp.distillation import AnomalyGuided
from agssp.pretraining_data import loader
from agssp.recipes import BackbonePretraining, Plan, check_combination
from baselines import methods
from baselines import weights as pretrained
from baselines.backbones import Backbone
from baselines.detectors import count_parameters
from baselines.freezing import freeze_stages
from baselines.pretraining import MomentumContrast, build_backbone
from baselines.training import precision
from baselines.training.checkpoints import remove_progress
from baselines.training.hooks import EpochRecorder, History, TrainingEvent
from baselines.training.optim import build_optimizer
from baselines.training.resources import set_threads
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    import datasets

    from agssp.map_store import MapStore
    from baselines.weights import LoadReport, LocalWeights

STAGE_VERSION = 2
"""Raised when a change of this code changes the weights that the same settings give."""

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class BackboneResult:
    """A finished pretraining.

    Attributes:
        weights: safetensors, names `backbone.*` of our detectors, header `agssp_bench`.
        curve: One entry an epoch: `losses` (`loss`; `loss_task` and `loss_distill`, before weighting), `lr`.
        seconds: Wall time over all interruptions.
        resumes: How often the training was taken up again.
        parameters: Trainable parameters, with those of the method's own head.
        backbone_parameters: Trainable parameters of the backbone.
        frozen: Names of the backbone's frozen parameters.
        distillation_weight: Factor of the distillation loss; None without maps.
        precision: `bf16` or `fp32`, as the machine allowed.
        load_report: What became of the initial weights; None without any.
    """

    weights: Path
    curve: list[dict[str, Any]]
    seconds: float
    resumes: int
    parameters: int
    backbone_parameters: int
    frozen: tuple[str, ...]
    distillation_weight: float | None
    precision: str
    load_report: LoadReport | None


@dataclass(frozen=True)
class PretrainingModel:
    """A model ready to be trained; see `build_model`."""

    guided: AnomalyGuided
    frozen: tuple[str, ...]
    load_report: LoadReport | None


def pretrain_backbone(
    *,
    backbone: Backbone,
    method: str,
    corpus: datasets.Dataset,
    maps: MapStore | None,
    recipe: BackbonePretraining,
    init: LocalWeights | None,
    seed: int,
    folder: Path,
    workers: int,
    on_event: Callable[[TrainingEvent], None],
) -> BackboneResult:
    """Pretrains a backbone and writes its weights.

    A training that was killed goes on from its last stored epoch when called again with the same folder; the result
    is the same as without the interruption (same machine, same number of threads).

    Forward passes run in bfloat16 where recipe and machine allow it; see `baselines.training.precision`.

    Started by torchrun it runs on every GPU it is given; rank 0 writes.

    Args:
        backbone: What is trained.
        method: One of `recipes.METHODS`.
        corpus: Rows with `image`, `image_id` and `category`.
        maps: Anomaly maps of its images that guide the training; None for the method alone.
        recipe: Of the family and method.
        init: Weights to start from; None for initial values by `seed`, with nothing frozen.
        seed: Seeds initialisation, order of images and augmentation.
        folder: Holds the state and weights of this training and of no other.
        workers: Data-loading processes; the rest of the cores compute. The result does not depend on it.
        on_event: Told after iterations.

    Raises:
        UserError: The method cannot pretrain this backbone, the recipe does not fit it, the corpus is empty, an image
            has no map, or the initial weights do not fit.
        TrainingDivergedError: The loss stopped being a number.
    """
    if not len(corpus):
        raise UserError("The corpus has no images. Prepare another one: python -m datasets_builders corpora")
    _join_ranks()
    set_threads(workers)
    cv2.setNumThreads(0)
    # Seeded before anything is built: the initialisation is part of the seed.
    set_random_seed(seed)
    categories = len(corpus.features["category"].names)
    model = build_model(backbone, method, categories, recipe, init=init, guided=maps is not None)
    plan = recipe.plan(len(corpus), get_world_size())
    if isinstance(model.guided.task, MomentumContrast):
        # Its momentum encoder follows the optimiser's steps, not the passes whose gradients are accumulated.
        model.guided.task.momentum_encoder.interval = plan.accumulation
    history = History()
    masking = recipe.masking if model.guided.task.hides_pixels else None
    runner = Runner(
        model=_shared(model.guided),
        work_dir=str(folder),
        experiment_name=secrets.token_hex(8),
        train_dataloader=loader(corpus, maps, recipe, plan, masking=masking, workers=workers, seed=seed),
        train_cfg={"by_epoch": True, "max_epochs": plan.epochs},
        optim_wrapper=_optim_wrapper(model.guided, recipe, plan),
        default_hooks={"logger": None, "checkpoint": None, "timer": None, "param_scheduler": None},
        custom_hooks=[LearningRate(recipe, plan), EpochRecorder(folder, seed, history, on_event)],
        visualizer={"type": "mmengine.Visualizer", "vis_backends": None},
        launcher="pytorch" if is_distributed() else "none",
        randomness={"seed": seed, "deterministic": False},
        log_level="ERROR",
    )
    runner.train()
    student = model.guided.task.student
    weight = None if maps is None else float(model.guided.weight)
    if is_main_process():
        facts = {
            "scope": "backbone",
            "backbone": backbone.id,
            "input": "unit",
            "method": method,
            "guided": maps is not None,
            "distillation_weight": weight,
            "precision": precision.resolve(recipe.mixed_precision),
        }
        state = {f"backbone.{name}": value for name, value in student.state_dict().items()}
        pretrained.save(folder / WEIGHTS, state, facts)
        remove_progress(folder)
    return BackboneResult(
        weights=folder / WEIGHTS,
        curve=history.curve,
        seconds=history.seconds,
        resumes=history.resumes,
        parameters=count_parameters(model.guided),
        backbone_parameters=count_parameters(student),
        frozen=model.frozen,
        distillation_weight=weight,
        precision=precision.resolve(recipe.mixed_precision),
        load_report=model.load_report,
    )


def build_model(
    backbone: Backbone,
    method: str,
    categories: int,
    recipe: BackbonePretraining,
    *,
    init: LocalWeights | None,
    guided: bool,
) -> PretrainingModel:
    """Builds what `pretrain_backbone` trains, with initial values from torch's generator.

    Args:
        backbone: What is trained.
        method: One of `recipes.METHODS`.
        categories: Of the corpus.
        recipe: Of the family and method.
        init: Weights to start from, whose lower stages are then frozen; None to train everything from scratch.
        guided: Whether anomaly maps guide the training.

    Raises:
        UserError: As `pretrain_backbone`.
    """
    check_combination(backbone.name, method)
    task_class = methods.model_class(method)
    if len(recipe.views) != task_class.views:
        raise UserError(
            f"{method} sees {task_class.views} view(s) of an image; the recipe describes {len(recipe.views)}."
        )
    student = build_backbone(backbone)
    report = pretrained.load(student, init) if init is not None else None
    frozen = freeze_stages(student, backbone.name, recipe.frozen_stages) if init is not None else ()
    # Last, because a momentum encoder copies the backbone, its weights and frozen stages included.
    task = task_class.of(student, backbone.out_channels[-1], categories, recipe)
    model = AnomalyGuided(task, recipe.distillation if guided else None)
    return PretrainingModel(model.to(memory_format=torch.channels_last), frozen, report)


class LearningRate(Hook):
    """Sets the learning rate from the number of finished steps alone, so that a resumed training has the same."""

    def __init__(self, recipe: BackbonePretraining, plan: Plan):
        self._recipe, self._plan = recipe, plan

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Sets the rate of every group."""
        step = runner.iter // self._plan.accumulation
        factor = self._recipe.schedule.factor(step, self._plan.steps, self._plan.steps_per_unit)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = self._recipe.optimizer.lr * factor


class Bfloat16Wrapper(OptimWrapper):
    """Computes the forward pass in bfloat16 where that is safe; its range needs no scaling of the loss.

    mmengine's own wrapper for mixed precision refuses to work on a CPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Runs a forward pass under autocast."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


def _optim_wrapper(model: nn.Module, recipe: BackbonePretraining, plan: Plan) -> OptimWrapper:
    kind = Bfloat16Wrapper if precision.resolve(recipe.mixed_precision) == "bf16" else OptimWrapper
    return kind(
        build_optimizer(model, recipe.optimizer),
        accumulative_counts=plan.accumulation,
        clip_grad=None if recipe.clip_grad_norm is None else {"max_norm": recipe.clip_grad_norm},
    )


def _join_ranks() -> None:
    """Joins the processes that torchrun started, if it did."""
    if "LOCAL_RANK" not in os.environ or is_distributed():
        return
    if torch.cuda.is_available():
        init_dist("pytorch")
    else:
        torch.distributed.init_process_group("gloo")


def _shared(model: nn.Module) -> nn.Module:
    """Wraps a model that ranks on CPUs train together; on GPUs mmengine does it, and asks for one."""
    if is_distributed() and not torch.cuda.is_available():
        return MMDistributedDataParallel(model, broadcast_buffers=False)
    return model
