"""What a benchmark consists of: cells, the words they are made of, and the content key of a finished one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from agssp.stages import backbone_of
from baselines import backbones
from baselines.detectors import DETECTORS, architecture
from benchmark.modes import MODES, Choice, Start, check_choice
from benchmark.protocol import Protocol
from datasets_builders import registry
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.storage import content_key


@dataclass(frozen=True)
class Cell:
    """One number of the benchmark: a pretraining, a detector, a dataset, a seed.

    Attributes:
        backbone: Family, such as `swin`.
        variant: Its size, such as `nano`.
        method: How the backbone was pretrained, `detection` with the whole detector, `-` not at all.
        mode: A key of `MODES`.
        detector: A name of `DETECTORS`.
        dataset: A dataset's name.
        seed: At least 0.
    """

    backbone: str
    variant: str
    method: str
    mode: str
    detector: str
    dataset: str
    seed: int

    @property
    def title(self) -> str:
        """One line for people."""
        method = "" if self.method in ("-", "detection") else f" ({self.method})"
        return (
            f"{self.backbone}:{self.variant} {self.mode}{method} {self.detector} on {self.dataset},"
            f" seed {self.seed}"
        )


def expand(
    protocol: Protocol,
    *,
    backbone: str,
    choice: Choice,
    detector: str = "yolov8",
    datasets: list[str] | None = None,
    seeds: list[int] | None = None,
) -> list[Cell]:
    """Turns what a user asked for into cells, in a fixed order.

    Args:
        protocol: Gives variant, datasets and seeds where the user named none.
        backbone: `name` or `name:variant`.
        choice: How the weights come to be.
        detector: A name of `DETECTORS`.
        datasets: Dataset names; None takes the protocol's first, `["all"]` all of the protocol's.
        seeds: Distinct seeds; None takes the protocol's.

    Raises:
        UserError: An unknown name, a combination that cannot be, a repeated or negative seed.
    """
    model = backbone_of(backbone, protocol.variants)
    if choice.mode not in MODES:
        raise unknown_name("mode", choice.mode, MODES, see="python -m benchmark list")
    if detector not in DETECTORS:
        raise unknown_name("detector", detector, DETECTORS, see="python -m benchmark list")
    check_choice(choice, model)
    chosen = list(protocol.datasets[:1]) if datasets is None else datasets
    chosen = list(protocol.datasets) if chosen == ["all"] else chosen
    for dataset in chosen:
        registry.card(dataset)
    numbers = list(protocol.seeds) if seeds is None else seeds
    if len(set(numbers)) != len(numbers) or any(seed < 0 for seed in numbers):
        raise UserError(f"Seeds must be distinct and not negative, not {numbers}. Try: --seeds 0 1 2")
    return [
        Cell(model.name, model.variant, choice.resolved_method, choice.mode, detector, dataset, seed)
        for dataset, seed in product(dict.fromkeys(chosen), numbers)
    ]


def cell_identity(
    cell: Cell, protocol: Protocol, start: Start, *, dataset_fingerprint: str, stage_version: int
) -> dict[str, Any]:
    """Returns everything that changes a cell's number, and nothing else (no device, workers, paths, logging)."""
    recipe = protocol.recipe(cell.backbone, cell.detector)
    numbers = architecture(cell.detector, recipe.size)
    return {
        "stage": "finetune",
        "stage_version": stage_version,
        "backbone": backbones.get(cell.backbone, cell.variant).config,
        "neck": backbones.get(cell.backbone, cell.variant).neck,
        "detector": cell.detector,
        "recipe": recipe.model_dump(mode="json"),
        **({"architecture": numbers} if numbers is not None else {}),
        "dataset": cell.dataset,
        "dataset_fingerprint": dataset_fingerprint,
        "weights_sha256": None,
        "seed": cell.seed,
        **start.identity(),
    }


def cell_key(identity: dict[str, Any]) -> str:
    """Returns the content key (64 hexadecimal digits) of an identity."""
    return content_key(identity)
