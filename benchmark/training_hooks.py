"""What the benchmark adds to mmengine's training loop: seeds, progress, measurements, resumption."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from safetensors.torch import save_file

from benchmark.checkpoints import Progress, load_progress, remove_progress, save_progress
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, Metrics, evaluate
from benchmark.training_data import seed_everything
from datasets_builders.storage import atomic_file, content_key, file_sha256

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
        curve: One entry an epoch: epoch, losses by name, lr, map50 and map50_95 (None where not validated).
        best_epoch: Epoch with the highest mAP@.5 (the first of equals), or None.
        best_map50: Its value.
        last_epoch: Epoch of the latest validation, or None.
        seconds: Wall time spent so far, over all interruptions.
        resumes: How often the training was taken up again.
        files: sha256 of every kept file of detections and weights, by name.
    """

    curve: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_map50: float = -1.0
    last_epoch: int | None = None
    seconds: float = 0.0
    resumes: int = 0
    files: dict[str, str] = field(default_factory=dict)


class DetectionMetric(BaseMetric):
    """Collects a detector's answers on the validation split and evaluates them.

    After each validation `detections` and `metrics` hold its outcome.
    """

    default_prefix = "validation"

    def __init__(self, ground_truth: GroundTruth, image_ids: list[str]):
        super().__init__()
        self._ground_truth = ground_truth
        self._image_ids = image_ids
        self.detections: Detections | None = None
        self.metrics: Metrics | None = None

    def process(self, data_batch: Any, data_samples: list[dict[str, Any]]) -> None:
        """Keeps a batch's boxes (x1, y1, x2, y2 in original pixels), scores and labels."""
        for sample in data_samples:
            found = sample["pred_instances"]
            arrays = (found[name].float().cpu().numpy() for name in ("bboxes", "scores", "labels"))
            self.results.append((self._image_ids[sample["img_id"]], *arrays))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Evaluates the whole split; values in percent."""
        image_ids, boxes, scores, labels = zip(*results, strict=True)
        self.detections = Detections.from_images(self._ground_truth.classes, image_ids, boxes, scores, labels)
        self.metrics = evaluate(self._ground_truth, self.detections)
        return {"map50": self.metrics.map50, "map50_95": self.metrics.map50_95}


class SwitchPipelineHook(Hook):
    """Changes the training transforms for the last epochs; a resumed training switches too."""

    def __init__(self, epoch: int, pipeline: Callable[[Any], Any]):
        self._epoch, self._pipeline = epoch, pipeline

    def before_train_epoch(self, runner: Runner) -> None:
        """Switches once the epoch has come."""
        if runner.epoch >= self._epoch:
            runner.train_dataloader.dataset.pipeline = self._pipeline


class TrainingRecorder(Hook):
    """Seeds every epoch, measures, and stores the state so that a killed training goes on bit for bit.

    Args:
        folder: Where state, weights and detections are kept.
        seed: The cell's seed.
        ema_hook: The runner's moving average.
        metric: The runner's metric.
        history: Filled as the training goes.
        on_event: Told after every iteration and at each validation.
    """

    # After the moving average (49) has put back the trained weights, and after every other hook.
    priority = "LOWEST"

    def __init__(
        self,
        folder: Path,
        seed: int,
        ema_hook: EMAHook,
        metric: DetectionMetric,
        history: History,
        on_event: Callable[[TrainingEvent], None],
    ):
        self._folder, self._seed = folder, seed
        self._ema_hook, self._metric = ema_hook, metric
        self._history, self._on_event = history, on_event
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
        """Adds up the losses and reports."""
        for name, value in (outputs or {}).items():
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
        self._history.curve.append(
            {"epoch": epoch, "losses": losses, "lr": rate, "map50": None, "map50_95": None}
        )
        loop = runner.train_loop
        validates = epoch % loop.val_interval == 0 or epoch == loop.max_epochs
        if not validates and time.perf_counter() - self._started > STORE_SECONDS:
            self._store(runner, epoch, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Reports that the validation has begun."""
        self._report(runner, runner.iter, validating=True)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Stores the validation's weights and detections beside the state that refers to them."""
        assert self._metric.metrics is not None
        assert self._metric.detections is not None
        epoch, measured, history = runner.epoch, self._metric.metrics, self._history
        history.curve[-1].update(map50=measured.map50, map50_95=measured.map50_95)
        history.last_epoch = epoch
        if measured.map50 > history.best_map50:
            history.best_epoch, history.best_map50 = epoch, measured.map50
        detections, weights = detections_file(self._folder, epoch), weights_file(self._folder, epoch)
        self._metric.detections.save(detections)
        ema = self._ema_hook.ema_model.module.state_dict()
        with atomic_file(weights) as temporary:
            save_file({name: value.contiguous().cpu() for name, value in ema.items()}, temporary)
        kept = {
            path.name
            for kept_epoch in (history.best_epoch, history.last_epoch)
            if kept_epoch is not None
            for path in (detections_file(self._folder, kept_epoch), weights_file(self._folder, kept_epoch))
        }
        made = {path.name: file_sha256(path) for path in (detections, weights)}
        history.files = {name: sha256 for name, sha256 in (history.files | made).items() if name in kept}
        # The state that names the files is stored before older files go: a kill in between loses nothing.
        self._store(runner, epoch, runner.iter)
        for path in self._folder.glob("epoch-*"):
            if path.name not in kept:
                path.unlink()
        self._report(runner, runner.iter)

    def _is_whole(self, name: str, sha256: str) -> bool:
        path = self._folder / name
        return path.is_file() and file_sha256(path) == sha256

    def _store(self, runner: Runner, epoch: int, iteration: int) -> None:
        now = time.perf_counter()
        self._history.seconds += now - self._started
        self._started = now
        save_progress(
            self._folder,
            Progress(
                epoch=epoch,
                iteration=iteration,
                model=runner.model.state_dict(),
                ema=self._ema_hook.ema_model.state_dict(),
                optimizer=runner.optim_wrapper.state_dict(),
                history=asdict(self._history),
            ),
        )

    def _report(self, runner: Runner, iteration: int, *, validating: bool = False) -> None:
        self._reported = time.perf_counter()
        measured = self._metric.metrics
        loss = self._sums.get("loss")
        self._on_event(
            TrainingEvent(
                iteration=iteration,
                iterations=runner.max_iters,
                epoch=max(math.ceil(iteration / len(runner.train_dataloader)), 1),
                epochs=runner.max_epochs,
                loss=float(loss) / self._count if loss is not None and self._count else None,
                map50=measured.map50 if measured else None,
                validating=validating,
            )
        )


def detections_file(folder: Path, epoch: int) -> Path:
    """Returns where the detections of an epoch's validation are kept."""
    return folder / f"epoch-{epoch}.parquet"


def weights_file(folder: Path, epoch: int) -> Path:
    """Returns where the averaged weights of an epoch's validation are kept."""
    return folder / f"epoch-{epoch}.safetensors"
