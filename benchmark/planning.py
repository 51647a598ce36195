"""What a run will do, before it does it: protocol, cells, what is there already, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agssp.recipes import check_categories
from agssp.stages import describe
from baselines import backbones
from baselines.training.resources import resolve_device
from benchmark import protocol as protocols
from benchmark.cells import Cell, expand
from benchmark.modes import Choice, Start, start
from benchmark.protocol import Protocol
from datasets_builders import corpus as corpora
from datasets_builders import prepared, registry
from datasets_builders.errors import UserError


@dataclass(frozen=True)
class Plan:
    """A run, resolved.

    Attributes:
        protocol: The track.
        reason: Why this one.
        device: `cpu` or `cuda`.
        cells: What is run, in order.
        choice: How their weights come to be, as asked for.
        start: What they begin with.
        results: Folder of records.
    """

    protocol: Protocol
    reason: str
    device: str
    cells: tuple[Cell, ...]
    choice: Choice
    start: Start
    results: Path

    @property
    def datasets(self) -> list[str]:
        """The cells' datasets, each once."""
        return list(dict.fromkeys(cell.dataset for cell in self.cells))

    def seconds_per_cell(self) -> float | None:
        """Expected wall seconds of one cell on the protocol's reference machine; None where never measured."""
        cell = self.cells[0]
        detector = "" if cell.detector == "yolov8" else f" {cell.detector}"
        return self.protocol.estimate.seconds.get(f"{cell.backbone}:{cell.variant}{detector}")

    def stages(self) -> list[dict[str, Any]]:
        """Returns each stage of pretraining with its key and whether it is there; keys need the corpus to be there."""
        if self.start.corpus is None:
            return []
        return list(describe(list(self.start.stages), self.start.corpus))

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan for `--json`."""
        recipe = self.protocol.recipe(self.cells[0].backbone, self.cells[0].detector)
        return {
            "protocol": self.protocol.id,
            "reason": self.reason,
            "device": self.device,
            "results": str(self.results),
            "recipe": recipe.model_dump(mode="json"),
            "seconds_per_cell": self.seconds_per_cell(),
            "reference_machine": self.protocol.estimate.machine,
            "datasets": {name: dataset_state(name) for name in self.datasets},
            "weights": None
            if self.start.weights is None
            else vars(self.start.weights) | {"path": str(self.start.weights.path)},
            "corpus": self.start.corpus,
            "stages": self.stages(),
            "cells": [vars(cell) for cell in self.cells],
        }


def make_plan(
    *,
    backbone: str,
    choice: Choice,
    detector: str,
    datasets: list[str] | None,
    protocol_name: str,
    seeds: list[int] | None,
    device: str,
    results: Path,
) -> Plan:
    """Resolves and checks what a user asked for; trains and downloads nothing.

    Raises:
        UserError: Unknown names, a dataset that is not there and cannot be generated, a device that is not there.
    """
    # The cells are checked first under any protocol: a misspelt name must not wait for torch.
    draft = protocols.load("mini-v1" if protocol_name == "auto" else protocol_name)
    expand(draft, backbone=backbone, choice=choice, detector=detector, datasets=datasets, seeds=seeds)
    chosen_device = resolve_device(device)
    protocol, reason = (
        choose_protocol(chosen_device, datasets)
        if protocol_name == "auto"
        else (draft, "named on the command line")
    )
    cells = expand(
        protocol, backbone=backbone, choice=choice, detector=detector, datasets=datasets, seeds=seeds
    )
    model = backbones.get(cells[0].backbone, cells[0].variant)
    begin = start(choice, model, detector, recipe_set=protocol.id, device=chosen_device)
    plan = Plan(protocol, reason, chosen_device, tuple(cells), choice, begin, results)
    if begin.corpus is not None:
        _check_corpus(begin.corpus)
        check_categories(choice.resolved_method, begin.corpus)
    for name in plan.datasets:
        if not protocol.procedural:
            check_whole(name, protocol.id)
        if dataset_state(name) == "missing":
            raise UserError(
                f"Dataset {name!r} is not on this machine. Its files come from {registry.card(name).homepage};"
                f" then: python -m datasets_builders prepare {registry.card(name).dataset} --raw DIR"
            )
    return plan


def check_whole(name: str, protocol: str) -> None:
    """Refuses a dataset of which only a part is on this machine.

    Raises:
        UserError: So it is.
    """
    if dataset_state(name) == "partial":
        raise UserError(
            f"Dataset {name!r} on this machine is only a part of what its owner published: no number of"
            f" {protocol} can come from it. Prepare all of it, or run it under: --protocol mini-v1"
        )


def corpus_state(name: str) -> str:
    """Returns `ready`, `generated on first use` or `missing`."""
    if corpora.is_ready(name):
        return "ready"
    return "generated on first use" if name.partition("/")[0] == "corpus_synthetic" else "missing"


def _check_corpus(name: str) -> None:
    if corpus_state(name) == "missing":
        raise UserError(
            f"Corpus {name!r} is not on this machine. Where its images come from: docs/corpus.md;"
            f" then: python -m datasets_builders prepare {name} --raw DIR"
        )


def dataset_state(name: str) -> str:
    """Returns `ready`, `partial`, `generated on first use` or `missing`."""
    manifest = prepared.quick_manifest(registry.card(name))
    if manifest is not None:
        return "partial" if manifest.partial else "ready"
    procedural = registry.card(registry.card(name).dataset).origin == "procedural"
    return "generated on first use" if procedural else "missing"


def choose_protocol(device: str, datasets: list[str] | None) -> tuple[Protocol, str]:
    """Takes the paper's protocol where there is a GPU and the data for it, the small one elsewhere; says why."""
    paper, mini = protocols.load("paper-v1"), protocols.load("mini-v1")
    if device != "cuda":
        return mini, "no GPU here"
    wanted = list(paper.datasets[:1]) if datasets is None else datasets
    wanted = list(paper.datasets) if wanted == ["all"] else wanted
    missing = [name for name in wanted if dataset_state(name) == "missing"]
    if missing:
        return mini, f"a GPU is here, but not the data of paper-v1: {', '.join(missing)}"
    return paper, "a GPU and the data are here"


def backbone_title(cell: Cell) -> str:
    """Returns the backbone's name for people."""
    return backbones.get(cell.backbone, cell.variant).title
