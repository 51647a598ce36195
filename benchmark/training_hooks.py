"""What finetuning adds to the common hooks of a training: validation, and keeping its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from safetensors.torch import save_file

from baselines.training.detector import final_weights
from baselines.training.hooks import EpochRecorder, History, TrainingEvent
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, Metrics, evaluate
from datasets_builders.storage import atomic_file, file_sha256


@dataclass
class FinetuneHistory(History):
    """The history of a finetuning; its curve also has map50 and map50_95 (None where not validated).

    Attributes:
        best_epoch: Epoch with the highest mAP@.5 (the first of equals), or None.
        best_map50: Its value.
        last_epoch: Epoch of the latest validation, or None.
    """

    best_epoch: int | None = None
    best_map50: float = -1.0
    last_epoch: int | None = None


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


class FinetuneRecorder(EpochRecorder):
    """Keeps the detections and weights of the best and of the last validation beside the state.

    The weights are the averaged ones, where the recipe has an average: those that were validated.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        ema_hook: EMAHook | None,
        metric: DetectionMetric,
        history: FinetuneHistory,
        on_event: Callable[[TrainingEvent], None],
    ):
        super().__init__(folder, seed, history, on_event, ema_hook)
        self._metric = metric
        self._validations = history

    def _curve_entry(self, epoch: int, losses: dict[str, float], rate: float) -> dict[str, Any]:
        return super()._curve_entry(epoch, losses, rate) | {"map50": None, "map50_95": None}

    def _validates(self, runner: Runner, epoch: int) -> bool:
        loop = runner.train_loop
        return epoch % loop.val_interval == 0 or epoch == loop.max_epochs

    def before_val_epoch(self, runner: Runner) -> None:
        """Reports that the validation has begun."""
        self._report(runner, runner.iter, validating=True)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Stores the validation's weights and detections beside the state that refers to them."""
        assert self._metric.metrics is not None
        assert self._metric.detections is not None
        epoch, measured, history = runner.epoch, self._metric.metrics, self._validations
        history.curve[-1].update(map50=measured.map50, map50_95=measured.map50_95)
        history.last_epoch = epoch
        if measured.map50 > history.best_map50:
            history.best_epoch, history.best_map50 = epoch, measured.map50
        detections, weights = detections_file(self._folder, epoch), weights_file(self._folder, epoch)
        self._metric.detections.save(detections)
        final = final_weights(runner.model, self._ema_hook)
        with atomic_file(weights) as temporary:
            save_file({name: value.contiguous().cpu() for name, value in final.items()}, temporary)
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
        if epoch < runner.max_epochs:
            for path in self._folder.glob("epoch-*"):
                if path.name not in kept:
                    path.unlink()
        self._report(runner, runner.iter)

    def _last_map50(self) -> float | None:
        return self._metric.metrics.map50 if self._metric.metrics else None


def detections_file(folder: Path, epoch: int) -> Path:
    """Returns where the detections of an epoch's validation are kept."""
    return folder / f"epoch-{epoch}.parquet"


def weights_file(folder: Path, epoch: int) -> Path:
    """Returns where the averaged weights of an epoch's validation are kept."""
    return folder / f"epoch-{epoch}.safetensors"
