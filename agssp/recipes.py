"""Recipes of pretraining: every setting that changes the weights, as typed data; values lie in `recipes/*.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from agssp.box_settings import BoxSettings
from baselines import methods
from baselines.training.recipes import DetectorTraining, Optimizer, Settings
from datasets_builders.corpus import full_name
from datasets_builders.corpus.store import quick_manifest
from datasets_builders.errors import UserError, unknown_name

AnyRecipe = TypeVar("AnyRecipe", bound=Settings)

METHODS: dict[str, tuple[str, ...]] = methods.families()
"""Method -> families of backbones that it can pretrain."""

PAPER_METHODS = {"csp_darknet": ("cls",), "resnet": ("cls", "mocov3"), "swin": ("cls", "simmim")}
"""Family -> methods that the paper pretrained it with (its Table 1)."""

_FOLDER = Path(__file__).with_name("recipes")


class RateSchedule(Settings):
    """Learning rate over a training, as a factor of the optimiser's; in units of the recipe's length.

    A linear warm-up over `warmup` units, then `steps` (times `gamma` at each milestone) or half a cosine down to
    `final_factor`.
    """

    type: Literal["steps", "cosine"]
    warmup: float = Field(default=0, ge=0)
    milestones: tuple[PositiveFloat, ...] = ()
    gamma: float = Field(default=0.1, gt=0, le=1)
    final_factor: float = Field(default=0, ge=0, le=1)

    def factor(self, step: int, steps: int, steps_per_unit: float) -> float:
        """Returns the factor at one step of the optimiser.

        Args:
            step: From 0.
            steps: Of the whole training.
            steps_per_unit: Steps of an epoch or, where the length is given in iterations, 1.
        """
        warmup = self.warmup * steps_per_unit
        if step < warmup:
            return min((step + 1) / warmup, 1.0)
        if self.type == "steps":
            return self.gamma ** sum(step >= milestone * steps_per_unit for milestone in self.milestones)
        done = (step - warmup) / max(steps - warmup, 1)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * done)) / 2


class Crop(Settings):
    """Which part of an image a view shows; the sides of the view are the recipe's `image_size`.

    Exactly one of `resize` (the whole image becomes a square of so many pixels, drawn from this range, and the view
    is cut from it) and `area` (share of the image's area, drawn from this range; aspect 3:4 to 4:3).
    """

    resize: tuple[PositiveInt, PositiveInt] | None = None
    area: tuple[PositiveFloat, PositiveFloat] | None = None
    flip: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Crop:
        given = [bounds for bounds in (self.resize, self.area) if bounds is not None]
        if len(given) != 1 or given[0][0] > given[0][1]:
            raise ValueError("give either resize or area, as [least, most]")
        return self


class Photometry(Settings):
    """Changes of a view's values; the anomaly map is left alone.

    Attributes:
        distort: Probability of each part of SSD's photometric distortion.
        jitter: Probability of a colour jitter by `jitter_strength` (brightness, contrast, saturation, hue).
        grey: Probability of losing the colours.
        blur: Probability of a Gaussian blur (sigma 0.1 to 2 pixels).
        solarize: Probability of inverting values from 128 up.
    """

    distort: float = Field(default=0, ge=0, le=1)
    jitter: float = Field(default=0, ge=0, le=1)
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = Field(default=0, ge=0, le=1)
    blur: float = Field(default=0, ge=0, le=1)
    solarize: float = Field(default=0, ge=0, le=1)


class View(Settings):
    """How one view of an image is made."""

    crop: Crop
    photometry: Photometry = Photometry()


class Masking(Settings):
    """SimMIM's mask: `ratio` of the blocks of `block` x `block` pixels are hidden."""

    block: int = Field(default=32, gt=0, multiple_of=4)
    ratio: float = Field(default=0.6, gt=0, lt=1)


class Contrast(Settings):
    """MoCo v3: widths of projector and predictor, temperature, and the momentum encoder's first step (cosine to 0)."""

    hidden: PositiveInt = 4096
    out: PositiveInt = 256
    temperature: PositiveFloat = 1.0
    momentum: float = Field(default=0.01, gt=0, lt=1)


class Distillation(Settings):
    """Anomaly-guided distillation (paper section 4.1.2).

    Attributes:
        loss: `cosine` (the paper's from ViT to CNN) or `l2` (from ViT to Swin).
        stages: How many of the last stages are aligned with the maps.
        weight: Factor of the distillation loss: `first_iteration` makes both losses equal there; or a number.
    """

    loss: Literal["cosine", "l2"]
    stages: int = Field(default=2, ge=1, le=3)
    weight: Literal["first_iteration"] | PositiveFloat = "first_iteration"


class BackbonePretraining(Settings):
    """How a backbone is pretrained.

    Its length is `epochs`, or `iterations` (steps of the optimiser) where corpora of different size shall cost the
    same.

    Attributes:
        image_size: Side of the views, in pixels.
        kept_side: Images are kept in memory at most so many pixels on their longer side.
        batch_size: Images of one step of the optimiser, over all devices.
        device_batch_size: Most images that go through one device at once; gradients are accumulated over the rest.
        mixed_precision: bfloat16 on GPUs, and on processors that have it.
        frozen_stages: Lower stages that keep their pretrained weights; none are frozen without such weights.
        views: One; two for `mocov3`.
    """

    image_size: int = Field(gt=0, multiple_of=32)
    kept_side: PositiveInt
    batch_size: PositiveInt
    device_batch_size: PositiveInt
    epochs: PositiveInt | None = None
    iterations: PositiveInt | None = None
    optimizer: Optimizer
    clip_grad_norm: PositiveFloat | None = None
    schedule: RateSchedule
    mixed_precision: bool = True
    frozen_stages: int = Field(default=2, ge=0, le=4)
    views: tuple[View, ...] = Field(min_length=1, max_length=2)
    distillation: Distillation
    masking: Masking = Masking()
    contrast: Contrast = Contrast()

    @model_validator(mode="after")
    def _one_length(self) -> BackbonePretraining:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("give either epochs or iterations")
        return self

    def plan(self, images: int, devices: int = 1) -> Plan:
        """Resolves batches and length for a corpus.

        Args:
            images: Of the corpus, at least 1.
            devices: That share each batch.
        """
        device_batch = max(min(self.device_batch_size, self.batch_size // devices), 1)
        accumulation = max(round(self.batch_size / (device_batch * devices)), 1)
        one_pass = max(images // (device_batch * devices * accumulation), 1)
        if self.epochs is not None:
            return Plan(device_batch, accumulation, one_pass, self.epochs, one_pass)
        assert self.iterations is not None
        # Without epochs of its own, the training is cut into pieces after which its state is stored.
        steps = min(one_pass, self.iterations, MOST_STEPS_BETWEEN_STATES)
        return Plan(device_batch, accumulation, steps, max(round(self.iterations / steps), 1), 1)


class DetectorPretraining(DetectorTraining):
    """How a detector is trained on pseudo boxes (paper section 4.2, Table 1).

    Attributes:
        frozen_stages: Stages of the backbone that keep their weights, from the input up; 4 freezes all of it. None are
            frozen without pretrained weights.
    """

    frozen_stages: int = Field(default=4, ge=0, le=4)


class MapSettings(Settings):
    """How the maps of a corpus are made.

    Attributes:
        source: As `python -m agssp maps --maps` takes it.
        shots: Normal images of each category.
        normals: How they are chosen: `auto` or `labelled`.
        seed: Of that choice.
    """

    source: str
    shots: int = Field(ge=0)
    normals: Literal["auto", "labelled"] = "auto"
    seed: int = Field(default=0, ge=0)


class Setup(Settings):
    """What the pretrainings of a track have in common.

    Attributes:
        corpus: Images.
        maps: How their maps are made.
        boxes: How pseudo boxes are made from the maps.
        init: Weights that a backbone begins with, by `family:variant/method`, `family/method`, `family:variant` or
            family, the first that is named: a spec of `baselines.weights.resolve`. What is not named begins with
            random values.
    """

    corpus: str
    maps: MapSettings
    boxes: BoxSettings
    init: dict[str, str] = Field(default_factory=dict)

    def initial_weights(self, backbone: str, method: str) -> str | None:
        """Returns the spec of the weights that a backbone begins with, or None.

        Args:
            backbone: Such as `resnet:50`.
            method: Such as `cls`.
        """
        family = backbone.partition(":")[0]
        names = (f"{backbone}/{method}", f"{family}/{method}", backbone, family)
        return next((self.init[name] for name in names if name in self.init), None)


MOST_STEPS_BETWEEN_STATES = 50


@dataclass(frozen=True)
class Plan:
    """A recipe's batches and length for one corpus and number of devices.

    Attributes:
        device_batch: Images that go through one device at once.
        accumulation: Such batches on each device for one step of the optimiser.
        steps_per_epoch: Steps between two moments at which the state may be stored.
        epochs: Number of these pieces.
        steps_per_unit: Steps of one unit of the recipe's schedule.
    """

    device_batch: int
    accumulation: int
    steps_per_epoch: int
    epochs: int
    steps_per_unit: int

    @property
    def steps(self) -> int:
        """Steps of the optimiser in all."""
        return self.steps_per_epoch * self.epochs


def names() -> list[str]:
    """Returns the sets of recipes, such as `paper-v1`."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def backbone_pretraining(name: str, family: str, method: str) -> BackbonePretraining:
    """Returns the recipe for a family of backbones and a method.

    Args:
        name: One of `names()`.
        family: Such as `swin`.
        method: One of `METHODS`.

    Raises:
        UserError: No such set, method or family; or the method cannot pretrain the family.
    """
    check_combination(family, method)
    section = _section(name, "backbone")
    merged: dict[str, Any] = dict(section["common"])
    for key in (method, family, f"{family}/{method}"):
        merged |= section["overrides"].get(key, {})
    return BackbonePretraining.model_validate(merged)


def detector_pretraining(name: str, family: str, detector: str) -> DetectorPretraining:
    """Returns the recipe for a detector with a family of backbones.

    Args:
        name: One of `names()`.
        family: Such as `swin`.
        detector: Such as `yolov8`.

    Raises:
        UserError: There is no such set.
    """
    section = _section(name, "detector")
    merged: dict[str, Any] = dict(section["common"])
    for key in (family, detector, f"{detector}/{family}"):
        merged |= section["overrides"].get(key, {})
    return DetectorPretraining.model_validate(merged)


def changed(recipe: AnyRecipe, changes: Mapping[str, Any]) -> AnyRecipe:
    """Returns a recipe with some settings replaced; those within one, such as `distillation`, one by one.

    Raises:
        UserError: There is no such setting, or it cannot have this value.
    """
    if not changes:
        return recipe
    values = recipe.model_dump()
    if {"epochs", "iterations"} & changes.keys():
        values |= {"epochs": None, "iterations": None}  # one of the two gives the length
    for name, value in changes.items():
        inner = values.get(name)
        values[name] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    try:
        return type(recipe).model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise UserError(
            f"The recipe cannot be changed by {dict(changes)}: {place}: {first['msg']}."
        ) from None


def setup(name: str) -> Setup:
    """Returns what the pretrainings of a set of recipes have in common.

    Raises:
        UserError: There is no such set.
    """
    return Setup.model_validate(_section(name, "setup"))


def check_combination(family: str, method: str) -> None:
    """Refuses a method that cannot pretrain a family.

    Raises:
        UserError: So it is, or there is no such method.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS, see="docs/pretraining.md")
    if family not in METHODS[method]:
        able = [other for other, families in METHODS.items() if family in families]
        raise UserError(
            f"{method} cannot pretrain {family}. It pretrains: {', '.join(METHODS[method])}.\n"
            f"  Methods for {family}: {', '.join(able) or 'none'}. See: docs/pretraining.md"
        )


def check_categories(method: str, corpus: str) -> None:
    """Refuses classification on a corpus of one category: there is nothing to tell apart, and nothing is learnt.

    Raises:
        UserError: So it is.
    """
    manifest = quick_manifest(full_name(corpus)) if method == "cls" else None
    if manifest is not None and len(manifest.categories) < 2:
        raise UserError(
            f"cls learns to tell categories apart, and {corpus} has one. Put the images of each product or surface into"
            " a folder\n  of its own and prepare it again, or take --method mocov3 or simmim. See: docs/tutorial.md"
        )


def in_paper(family: str, method: str) -> bool:
    """Tells whether the paper has this combination."""
    return method in PAPER_METHODS.get(family, ())


def _section(name: str, section: str) -> Mapping[str, Any]:
    if name not in names():
        raise unknown_name("recipes", name, names(), see="docs/pretraining.md")
    return _read(name)[section]


@cache
def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
