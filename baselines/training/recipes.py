"""Recipes: the settings of a training that change its number, as typed data."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Settings(BaseModel):
    """Base of all settings: immutable, and no unknown name passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _absent(value: object) -> bool:
    return value is None


def _off(value: object) -> bool:
    return value is False


class Optimizer(Settings):
    """The optimiser of a training; `momentum` and `nesterov` apply to SGD alone.

    `backbone_factor` multiplies the learning rate of the backbone.
    """

    type: Literal["SGD", "AdamW"]
    lr: PositiveFloat
    weight_decay: float = Field(ge=0)
    momentum: float | None = None
    nesterov: bool | None = None
    # Left out of what is hashed where it is not given: older keys stand.
    backbone_factor: PositiveFloat | None = Field(default=None, exclude_if=_absent)


class Schedule(Settings):
    """Learning rate over epochs, from 1 to `final_factor` times the base rate."""

    type: Literal["linear", "cosine"]
    final_factor: float = Field(gt=0, le=1)


class StepSchedule(Settings):
    """Learning rate over epochs: times `gamma` once each milestone, a number of finished epochs, is reached."""

    type: Literal["steps"]
    milestones: tuple[PositiveInt, ...]
    gamma: float = Field(default=0.1, gt=0, le=1)


class Warmup(Settings):
    """Warm-up over `max(epochs, min_iterations)`: rates rise from 0 (biases fall from `bias_lr`)."""

    epochs: float = Field(ge=0)
    min_iterations: int = Field(ge=0)
    bias_lr: float = Field(ge=0)
    momentum: float = Field(ge=0, lt=1)


class Ema(Settings):
    """Exponential moving average of the weights: `new = (1 - m) * old + m * current`.

    `m` decays exponentially towards `momentum` over the first `gamma` updates, so that a young average follows quickly.
    """

    momentum: float = Field(gt=0, lt=1)
    gamma: PositiveInt = 2000


class Augmentation(Settings):
    """Training augmentation: mosaic probability, last epochs without it, affine scale, HSV gains, flip probability.

    With the affine scale come shifts by up to a tenth of the image; at 0 there is no affine map at all.
    """

    mosaic: float = Field(ge=0, le=1)
    mosaic_off_epochs: int = Field(ge=0)
    scale: float = Field(ge=0, lt=1)
    hsv: tuple[float, float, float]
    flip: float = Field(ge=0, le=1)


class Test(Settings):
    """Inference settings: score floor, IoU of non-maximum suppression, most detections kept for an image."""

    score_threshold: float = Field(ge=0, lt=1)
    nms_iou: float = Field(gt=0, le=1)
    max_detections: PositiveInt


class Losses(Settings):
    """Weights of YOLOv8's three losses: classification, CIoU box, distribution focal."""

    cls: PositiveFloat
    box: PositiveFloat
    dfl: PositiveFloat


class Assigner(Settings):
    """Task-aligned assigner: candidates a box and the exponents of its alignment metric."""

    topk: PositiveInt
    alpha: PositiveFloat
    beta: PositiveFloat


class DetectorTraining(Settings):
    """How a detector is trained, whatever it starts from.

    Its length is `epochs`, or `iterations` where sets of different size shall cost the same.

    Attributes:
        ema: None where the trained weights themselves are evaluated.
        clip_grad_norm: None where gradients are left as they are.
        losses: YOLOv8's; the other detectors have mmdet's.
        assigner: YOLOv8's.
        size: Of the other detectors: a name of `baselines/detectors/sizes.yaml`.
        mixed_precision: bfloat16 in the network where the machine has it; see `baselines.training.precision`.
    """

    image_size: int = Field(gt=0, multiple_of=32)
    batch_size: PositiveInt
    epochs: PositiveInt | None = None
    iterations: PositiveInt | None = None
    optimizer: Optimizer
    clip_grad_norm: PositiveFloat | None
    schedule: Annotated[Schedule | StepSchedule, Field(discriminator="type")]
    warmup: Warmup
    ema: Ema | None
    augmentation: Augmentation
    test: Test
    losses: Losses | None = None
    assigner: Assigner | None = None
    size: str | None = Field(default=None, exclude_if=_absent)
    mixed_precision: bool = Field(default=False, exclude_if=_off)

    @model_validator(mode="after")
    def _fits_together(self) -> DetectorTraining:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("give either epochs or iterations")
        if self.schedule.type == "steps" and self.epochs is None:
            raise ValueError("milestones are epochs: give the length in epochs, too")
        if self.optimizer.backbone_factor is not None and self.warmup.bias_lr > 0:
            raise ValueError("a warm-up of biases from a rate of their own knows no backbone_factor")
        return self

    def length(self, train_images: int) -> Length:
        """Resolves the recipe's length for a number of training images (at least 1)."""
        per_epoch = math.ceil(train_images / self.batch_size)
        epochs = self.epochs or max(round((self.iterations or 0) / per_epoch), 1)
        return Length(epochs=epochs, iterations_per_epoch=per_epoch)


class Length(Settings):
    """A recipe's length for one set of training images."""

    epochs: PositiveInt
    iterations_per_epoch: PositiveInt

    @property
    def iterations(self) -> int:
        """Training iterations in all."""
        return self.epochs * self.iterations_per_epoch
