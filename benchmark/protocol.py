"""Protocols: every setting that changes a number, versioned, as data in `benchmark/protocols/*.yaml`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from agssp import recipes
from baselines.training.recipes import DetectorTraining, Settings
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.storage import content_key

_FOLDER = Path(__file__).parent / "protocols"
_INVALID = Path(__file__).with_name("invalid_protocols.yaml")


class Validation(Settings):
    """When the validation split is evaluated: every so many epochs, and every epoch for the last few."""

    every_epochs: PositiveInt | None = None
    times: PositiveInt | None = None
    every_epoch_at_end: int = Field(ge=0, default=0)

    @model_validator(mode="after")
    def _one_of(self) -> Validation:
        if (self.every_epochs is None) == (self.times is None):
            raise ValueError("give either every_epochs or times")
        return self


class Finetune(DetectorTraining):
    """The standard finetuning recipe of a labelled dataset (paper section 5.1.2).

    Attributes:
        validation: When the validation split is evaluated.
        frozen_stages: Lower stages of the backbone that keep their weights, for ablations (Fig. 6a).
    """

    validation: Validation
    # Left out of what is hashed where nothing is frozen: older keys stand.
    frozen_stages: int = Field(default=0, ge=0, le=4, exclude_if=lambda stages: stages == 0)

    def validation_interval(self, epochs: int) -> int:
        """Returns the epochs between two validations of a training of so many epochs."""
        return self.validation.every_epochs or math.ceil(epochs / (self.validation.times or 1))


class Estimate(Settings):
    """Wall seconds of one finetuning for each backbone, and the machine on which they were measured.

    Names are `swin:nano` for YOLOv8 and `swin:nano dino` for another detector.
    """

    machine: str
    seconds: dict[str, PositiveFloat]


class Protocol(Settings):
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
        detectors: Those that differ for a detector (`dino`), or for it with a backbone (`dino/swin`).
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
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    detectors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    estimate: Estimate

    @property
    def id(self) -> str:
        """The name to type, such as `mini-v1`."""
        return f"{self.name}-v{self.version}"

    def sha256(self, detector: str) -> str:
        """Hash of every setting that changes a detector's numbers (not the title, not the estimate)."""
        settings = self.model_dump(mode="json", exclude={"title", "estimate", "detectors"})
        own = {name: value for name, value in self.detectors.items() if name.split("/")[0] == detector}
        return content_key(settings | ({"detectors": own} if own else {}))

    def recipe(self, backbone: str, detector: str) -> Finetune:
        """Returns the finetuning recipe for a backbone and a detector, their overrides applied, in this order."""
        settings = self.finetune.model_dump() | self.overrides.get(backbone, {})
        for name in (detector, f"{detector}/{backbone}"):
            settings |= self.detectors.get(name, {})
        return Finetune.model_validate(settings)

    def changed(self, backbone: str, detector: str, changes: Mapping[str, Any]) -> Protocol:
        """Returns the protocol with some settings of a backbone's and detector's recipe replaced, for ablations.

        Its hash differs, and so do the keys of its cells.

        Raises:
            UserError: There is no such setting, or it cannot have this value.
        """
        if not changes:
            return self
        recipe = recipes.changed(self.recipe(backbone, detector), changes).model_dump()
        length = {"epochs", "iterations"} if {"epochs", "iterations"} & changes.keys() else set()
        name = f"{detector}/{backbone}"
        own = self.detectors.get(name, {}) | {setting: recipe[setting] for setting in changes.keys() | length}
        return self.model_copy(update={"detectors": {**self.detectors, name: own}})


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


def invalid_reason(name: str, version: int) -> str | None:
    """Returns why records of a protocol no longer count, or None where they do.

    Args:
        name: Family, such as `mini`.
        version: Its version.
    """
    return _invalid().get(name, {}).get(version)


@functools.cache
def _invalid() -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = yaml.safe_load(_INVALID.read_text(encoding="utf-8"))
    return found
