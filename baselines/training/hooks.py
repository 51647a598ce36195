"""What is added to mmengine's training loop: seeds, progress, measurements, resumption."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from baselines.training.checkpoints import Progress, load_progress, remove_progress, save_progress
from baselines.training.data import seed_everything
from baselines.training.recipes import StepSchedule, Warmup
from datasets_builders.storage import content_key, file_sha256

logger = logging.getLogger(__name__)

REPORT_SECONDS = 0.2
"""Shortest time between two reports of progress."""

STORE_SECONDS = 5.0
"""Shortest time between two stored states, so that short epochs do not spend their time storing."""


class TrainingDivergedError(RuntimeError):
    """The loss stopped being a number."""


@dataclass(frozen=True)
class TrainingEvent:
    """Where a training is: for progress displays.

    Attributes:
        iteration: Finished iterations, resumed ones included.
        iterations: Iterations in all.
        epoch: Current epoch, from 1.
        epochs: Epochs in all.
        loss: Sum of the losses, mean over the epoch so far.
        map50: mAP@.5 in percent at the last validation, or None before the first.
        validating: Whether the validation split is being evaluated.
    """

    iteration: int
    iterations: int
    epoch: int
    epochs: int
    loss: float | None
    map50: float | None
    validating: bool = False


@dataclass
class History:
    """What a training measured: JSON values only, since it is stored with the progress.

    Attributes:
        curve: One entry an epoch: epoch, losses by name, lr.
        seconds: Wall time spent so far, over all interruptions.
        resumes: How often the training was taken up again.
        files: sha256 of every file kept beside the state, by name.
    """

    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    resumes: int = 0
    files: dict[str, str] = field(default_factory=dict)


class SwitchPipelineHook(Hook):
    """Changes the training transforms for the last epochs; a resumed training switches too."""

    def __init__(self, epoch: int, pipeline: Callable[[Any], Any]):
        self._epoch, self._pipeline = epoch, pipeline

    def before_train_epoch(self, runner: Runner) -> None:
        """Switches once the epoch has come."""
        if runner.epoch >= self._epoch:
            runner.train_dataloader.dataset.pipeline = self._pipeline


class StepRates(Hook):
    """Sets the learning rate of every iteration: its warm-up, then steps; a resumed training finds the same rates.

    Args:
        schedule: Milestones in epochs.
        warmup: Its `bias_lr` is where the biases, every third group of the optimiser, begin.
    """

    def __init__(self, schedule: StepSchedule, warmup: Warmup):
        self._schedule, self._warmup = schedule, warmup

    def before_train(self, runner: Runner) -> None:
        """Notes the rates of the recipe, before a stored state brings those of its own iteration."""
        for group in runner.optim_wrapper.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            if "momentum" in group:
                group.setdefault("initial_momentum", group["momentum"])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Sets rates and momenta."""
        schedule, warmup = self._schedule, self._warmup
        factor = schedule.gamma ** sum(runner.epoch >= milestone for milestone in schedule.milestones)
        iterations = max(round(warmup.epochs * len(runner.train_dataloader)), warmup.min_iterations)
        done = min(runner.iter / iterations, 1.0) if iterations else 1.0
        for index, group in enumerate(runner.optim_wrapper.optimizer.param_groups):
            start = warmup.bias_lr if index % 3 == 2 else 0.0
            group["lr"] = start + (group["initial_lr"] * factor - start) * done
            if "momentum" in group:
                group["momentum"] = warmup.momentum + (group["initial_momentum"] - warmup.momentum) * done


class EpochRecorder(Hook):
    """Seeds every epoch, measures, and stores the state so that a killed training goes on bit for bit.

    Args:
        folder: Where the state is kept.
        seed: The training's seed.
        history: Filled as the training goes.
        on_event: Told after iterations.
        ema_hook: The runner's moving average, where it has one.
    """

    # After the moving average (49) has put back the trained weights, and after every other hook.
    priority = "LOWEST"

    def __init__(
        self,
        folder: Path,
        seed: int,
        history: History,
        on_event: Callable[[TrainingEvent], None],
        ema_hook: EMAHook | None = None,
    ):
        self._folder, self._seed = folder, seed
        self._history, self._on_event = history, on_event
        self._ema_hook = ema_hook
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._started = 0.0
        self._reported = -math.inf

    def before_train(self, runner: Runner) -> None:
        """Restores the last stored state, if there is one."""
        self._started = time.perf_counter()
        progress = load_progress(self._folder)
        if progress is None:
            return
        damaged = [
            name for name, sha256 in progress.history["files"].items() if not self._is_whole(name, sha256)
        ]
        if damaged:
            logger.warning(
                "%s: %s damaged or gone; the training starts anew.", self._folder, ", ".join(damaged)
            )
            remove_progress(self._folder)
            return
        runner.model.load_state_dict(progress.model)
        if self._ema_hook is not None:
            self._ema_hook.ema_model.load_state_dict(progress.ema)
        runner.optim_wrapper.load_state_dict(progress.optimizer)
        runner.train_loop._epoch = progress.epoch
        runner.train_loop._iter = progress.iteration
        vars(self._history).update(progress.history)
        self._history.resumes += 1

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds the transforms by (seed, epoch), so that an epoch does not depend on the ones before it."""
        seed_everything(int(content_key([self._seed, runner.epoch])[:8], 16))
        self._sums, self._count = {}, 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Adds up the losses and reports.

        What else a model logs (such as an accuracy) is left out, and so are the losses of DINO's inner layers, whose
        names have a dot: they are in the sum.
        """
        for name, value in (outputs or {}).items():
            if "loss" not in name or "." in name:
                continue
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._count += 1
        # Reading a loss waits for the device; a person needs no more than five reports a second.
        if time.perf_counter() - self._reported > REPORT_SECONDS:
            self._report(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Closes the epoch's entry of the curve."""
        losses = {name: float(total) / self._count for name, total in sorted(self._sums.items())}
        epoch = runner.epoch + 1
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingDivergedError(
                f"The loss is not a number in epoch {epoch}: {losses}. The recipe's learning rate does not fit."
            )
        rate = float(runner.optim_wrapper.optimizer.param_groups[0]["lr"])
        self._history.curve.append(self._curve_entry(epoch, losses, rate))
        if not self._validates(runner, epoch) and (
            epoch == runner.max_epochs or time.perf_counter() - self._started > STORE_SECONDS
        ):
            self._store(runner, epoch, runner.iter)

    def _curve_entry(self, epoch: int, losses: dict[str, float], rate: float) -> dict[str, Any]:
        return {"epoch": epoch, "losses": losses, "lr": rate}

    def _validates(self, runner: Runner, epoch: int) -> bool:
        """Tells whether a validation follows this epoch, which stores the state itself."""
        return False

    def _is_whole(self, name: str, sha256: str) -> bool:
        path = self._folder / name
        return path.is_file() and file_sha256(path) == sha256

    def _store(self, runner: Runner, epoch: int, iteration: int) -> None:
        """Stores the state after an epoch and adds up the time.

        After the last epoch a state helps only where the result cannot be stored right away, and only if repeating
        what is not stored yet would take long.
        """
        if not is_main_process():
            return
        now = time.perf_counter()
        unstored = now - self._started
        self._history.seconds += unstored
        self._started = now
        if epoch == runner.max_epochs and unstored < STORE_SECONDS:
            return
        save_progress(
            self._folder,
            Progress(
                epoch=epoch,
                iteration=iteration,
                model=runner.model.state_dict(),
                ema=self._ema_hook.ema_model.state_dict() if self._ema_hook is not None else {},
                optimizer=runner.optim_wrapper.state_dict(),
                history=asdict(self._history),
            ),
        )

    def _last_map50(self) -> float | None:
        """Returns mAP@.5 at the last validation, where there are any."""
        return None

    def _report(self, runner: Runner, iteration: int, *, validating: bool = False) -> None:
        self._reported = time.perf_counter()
        loss = self._sums.get("loss")
        self._on_event(
            TrainingEvent(
                iteration=iteration,
                iterations=runner.max_iters,
                epoch=max(math.ceil(iteration / len(runner.train_dataloader)), 1),
                epochs=runner.max_epochs,
                loss=float(loss) / self._count if loss is not None and self._count else None,
                map50=self._last_map50(),
                validating=validating,
            )
        )
