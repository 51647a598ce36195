"""Protocols: every setting that changes a number, versioned, as data in `benchmark/protocols/*.yaml`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from datasets_builders.errors import UserError, unknown_name
from datasets_builders.storage import content_key

_FOLDER = Path(__file__).parent / "protocols"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Optimizer(_Settings):
    """The optimiser of finetuning; `momentum` and `nesterov` apply to SGD alone."""

    type: Literal["SGD", "AdamW"]
    lr: PositiveFloat
    weight_decay: float = Field(ge=0)
    momentum: float | None = None
    nesterov: bool | None = None


class Schedule(_Settings):
    """Learning rate over epochs, from 1 to `final_factor` times the base rate."""

    type: Literal["linear", "cosine"]
    final_factor: float = Field(gt=0, le=1)


class Warmup(_Settings):
    """Warm-up over `max(epochs, min_iterations)`: rates rise from 0 (biases fall from `bias_lr`)."""

    epochs: float = Field(ge=0)
    min_iterations: int = Field(ge=0)
    bias_lr: float = Field(ge=0)
    momentum: float = Field(ge=0, lt=1)


class Ema(_Settings):
    """Exponential moving average of the weights: `new = (1 - m) * old + m * current`.

    `m` decays exponentially towards `momentum` over the first `gamma` updates, so that a young average follows quickly.
    """

    momentum: float = Field(gt=0, lt=1)
    gamma: PositiveInt = 2000


class Augmentation(_Settings):
    """Training augmentation: mosaic probability, last epochs without it, affine scale, HSV gains, flip probability."""

    mosaic: float = Field(ge=0, le=1)
    mosaic_off_epochs: int = Field(ge=0)
    scale: float = Field(ge=0, lt=1)
    hsv: tuple[float, float, float]
    flip: float = Field(ge=0, le=1)


class Validation(_Settings):
    """When the validation split is evaluated: every so many epochs, and every epoch for the last few."""

    every_epochs: PositiveInt | None = None
    times: PositiveInt | None = None
    every_epoch_at_end: int = Field(ge=0, default=0)

    @model_validator(mode="after")
    def _one_of(self) -> Validation:
        if (self.every_epochs is None) == (self.times is None):
            raise ValueError("give either every_epochs or times")
        return self


class Test(_Settings):
    """Inference settings: score floor, IoU of non-maximum suppression, most detections kept for an image."""

    score_threshold: float = Field(ge=0, lt=1)
    nms_iou: float = Field(gt=0, le=1)
    max_detections: PositiveInt


class Losses(_Settings):
    """Weights of YOLOv8's three losses: classification, CIoU box, distribution focal."""

    cls: PositiveFloat
    box: PositiveFloat
    dfl: PositiveFloat


class Assigner(_Settings):
    """Task-aligned assigner: candidates a box and the exponents of its alignment metric."""

    topk: PositiveInt
    alpha: PositiveFloat
    beta: PositiveFloat


class Finetune(_Settings):
    """The standard finetuning recipe of a labelled dataset (paper section 5.1.2).

    Its length is `epochs`, or `iterations` where sets of different size shall cost the same.
    """

    image_size: int = Field(gt=0, multiple_of=32)
    batch_size: PositiveInt
    epochs: PositiveInt | None = None
    iterations: PositiveInt | None = None
    optimizer: Optimizer
    clip_grad_norm: PositiveFloat
    schedule: Schedule
    warmup: Warmup
    ema: Ema
    augmentation: Augmentation
    validation: Validation
    test: Test
    losses: Losses
    assigner: Assigner

    @model_validator(mode="after")
    def _one_length(self) -> Finetune:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("give either epochs or iterations")
        return self

    def length(self, train_images: int) -> Length:
        """Resolves the recipe's length for a training split.

        Args:
            train_images: Number of training images, at least 1.

        Returns:
            Epochs, iterations in each, and the epochs between two validations.
        """
        per_epoch = math.ceil(train_images / self.batch_size)
        epochs = self.epochs or max(round((self.iterations or 0) / per_epoch), 1)
        interval = self.validation.every_epochs or math.ceil(epochs / (self.validation.times or 1))
        return Length(epochs=epochs, iterations_per_epoch=per_epoch, validation_interval=interval)


class Length(_Settings):
    """A recipe's length for one training split."""

    epochs: PositiveInt
    iterations_per_epoch: PositiveInt
    validation_interval: PositiveInt

    @property
    def iterations(self) -> int:
        """Training iterations in all."""
        return self.epochs * self.iterations_per_epoch


class Estimate(_Settings):
    """Wall seconds of one finetuning for each backbone, and the machine on which they were measured."""

    machine: str
    seconds: dict[str, PositiveFloat]


class Protocol(_Settings):
    """One track of the benchmark.

    Attributes:
        name: Family, such as `mini`.
        version: Raised with every change of a setting that changes a number.
        title: One line for people.
        procedural: Whether its default datasets are generated.
        datasets: Datasets of the track, in the order of its table.
        variants: The variant of each backbone that the track uses.
        seeds: Seeds of a complete row.
        finetune: The recipe.
        overrides: Recipe settings that differ for a backbone.
        estimate: Expected cost; changes no number.
    """

    name: str
    version: PositiveInt
    title: str
    procedural: bool
    datasets: tuple[str, ...]
    variants: dict[str, str]
    seeds: tuple[int, ...]
    finetune: Finetune
    overrides: dict[str, dict[str, Any]] = {}
    estimate: Estimate

    @property
    def id(self) -> str:
        """The name to type, such as `mini-v1`."""
        return f"{self.name}-v{self.version}"

    @property
    def sha256(self) -> str:
        """Hash of every setting that changes a number (not the title, not the estimate)."""
        return content_key(self.model_dump(mode="json", exclude={"title", "estimate"}))

    def recipe(self, backbone: str) -> Finetune:
        """Returns the finetuning recipe for a backbone, its overrides applied."""
        settings = self.finetune.model_dump() | self.overrides.get(backbone, {})
        return Finetune.model_validate(settings)


def names() -> list[str]:
    """Returns the protocols that come with the package, such as `mini-v1`."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load(name: str) -> Protocol:
    """Loads a protocol that comes with the package.

    Raises:
        UserError: No protocol has this name.
    """
    if name not in names():
        raise unknown_name("protocol", name, names(), see="python -m benchmark list")
    protocol = Protocol.model_validate(yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
    if protocol.id != name:
        raise UserError(f"Protocol file {name}.yaml declares {protocol.id!r}: name and version must match.")
    return protocol
