"""What a benchmark consists of: cells, the words they are made of, and the content key of a finished one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from baselines import backbones
from baselines.detectors import DETECTORS
from benchmark.protocol import Protocol
from datasets_builders import registry
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.storage import content_key

MODES = {
    "scratch": "random initialisation",
    "imagenet": "backbone pretrained on ImageNet",
    "coco": "whole detector pretrained on COCO",
    "industrial": "backbone pretrained on the industrial corpus",
    "agbp": "backbone pretrained on the corpus, guided by anomaly maps",
    "agssp": "backbone and detector pretrained on the corpus, guided by anomaly maps and pseudo boxes",
}
"""Pretraining modes: the rows of the paper's Table 2."""

AVAILABLE_MODES = ("scratch",)
"""Modes that this version can run."""


@dataclass(frozen=True)
class Cell:
    """One number of the benchmark: a pretraining, a detector, a dataset, a seed.

    Attributes:
        backbone: Family, such as `swin`.
        variant: Its size, such as `nano`.
        method: How the backbone was pretrained; `-` where it was not.
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
        return (
            f"{self.backbone}:{self.variant} {self.mode} {self.detector} on {self.dataset}, seed {self.seed}"
        )


def expand(
    protocol: Protocol,
    *,
    backbone: str,
    mode: str,
    detector: str = "yolov8",
    datasets: list[str] | None = None,
    seeds: list[int] | None = None,
) -> list[Cell]:
    """Turns what a user asked for into cells, in a fixed order.

    Args:
        protocol: Gives variant, datasets and seeds where the user named none.
        backbone: `name` or `name:variant`.
        mode: A key of `MODES`.
        detector: A name of `DETECTORS`.
        datasets: Dataset names; None takes the protocol's first, `["all"]` all of the protocol's.
        seeds: Distinct seeds; None takes the protocol's.

    Raises:
        UserError: An unknown name, a mode that this version cannot run, a repeated or negative seed.
    """
    name, _, variant = backbone.partition(":")
    known = backbones.variants(name)
    if not variant:
        variant = protocol.variants.get(name, known[0])
    backbones.get(name, variant)
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES, see="python -m benchmark list")
    if mode not in AVAILABLE_MODES:
        raise UserError(
            f"Mode {mode!r} cannot run in this version; it can run: {', '.join(AVAILABLE_MODES)}."
            " See: python -m benchmark list"
        )
    if detector not in DETECTORS:
        raise unknown_name("detector", detector, DETECTORS, see="python -m benchmark list")
    chosen = list(protocol.datasets[:1]) if datasets is None else datasets
    chosen = list(protocol.datasets) if chosen == ["all"] else chosen
    for dataset in chosen:
        registry.card(dataset)
    numbers = list(protocol.seeds) if seeds is None else seeds
    if len(set(numbers)) != len(numbers) or any(seed < 0 for seed in numbers):
        raise UserError(f"Seeds must be distinct and not negative, not {numbers}. Try: --seeds 0 1 2")
    return [
        Cell(name, variant, "-", mode, detector, dataset, seed)
        for dataset, seed in product(dict.fromkeys(chosen), numbers)
    ]


def cell_identity(
    cell: Cell, protocol: Protocol, *, dataset_fingerprint: str, stage_version: int
) -> dict[str, Any]:
    """Returns everything that changes a cell's number, and nothing else (no device, workers, paths, logging)."""
    return {
        "stage": "finetune",
        "stage_version": stage_version,
        "backbone": backbones.get(cell.backbone, cell.variant).config,
        "neck": backbones.get(cell.backbone, cell.variant).neck,
        "detector": cell.detector,
        "recipe": protocol.recipe(cell.backbone).model_dump(mode="json"),
        "dataset": cell.dataset,
        "dataset_fingerprint": dataset_fingerprint,
        "weights_sha256": None,
        "seed": cell.seed,
    }


def cell_key(identity: dict[str, Any]) -> str:
    """Returns the content key (64 hexadecimal digits) of an identity."""
    return content_key(identity)
