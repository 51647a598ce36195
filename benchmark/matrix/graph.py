"""The graph of a matrix: everything that its cells need, each piece of work once, in an order that can be run.

    dataset ───────────────────────────────────────────┐
    weights ─────────────┬───────────────────────────┐ │
    corpus ─► maps ─► boxes ───────────┐             ▼ ▼
       └───────┴────► backbone ────────┴─► detector ─► cell

Planning needs neither data nor torch: a node is named by what is asked for. The content key of its result is found when
it is executed (`benchmark.matrix.execution`), and decides there whether anything is to be done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from agssp import recipes
from agssp.recipes import BackbonePretraining, DetectorPretraining
from baselines import backbones
from benchmark.cells import Cell
from benchmark.modes import PRETRAINED_HERE, Choice, public_weights
from benchmark.protocol import Protocol
from datasets_builders import corpus as corpora
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

STAGES = ("dataset", "corpus", "weights", "maps", "boxes", "backbone", "detector")
"""Kinds of nodes that others need, each after those that it can need itself."""
ASKED = ("cell", "anomaly", "efficiency")
"""Kinds of nodes that somebody asked for."""
KINDS = (*STAGES, *ASKED)
COMPUTING = ("maps", "backbone", "detector", *ASKED)
"""Kinds that compute on the device; the others read, write and download."""
_CPUS_BESIDE_GPU = 4


@dataclass(frozen=True)
class Task:
    """A cell that is wanted, how its weights come to be, and what tells it from others like it in an ablation."""

    cell: Cell
    choice: Choice
    label: str | None = None

    def facts(self) -> dict[str, str]:
        """Returns what `--only` may name."""
        variant = {"variant": self.cell.variant, "label": self.label or ""}
        names = ("backbone", "method", "mode", "detector", "dataset", "seed")
        return {name: str(getattr(self.cell, name)) for name in names} | variant


@dataclass(frozen=True)
class AnomalyTask:
    """A measurement of the anomaly benchmark that is wanted; see `benchmark.anomaly.run_anomaly`."""

    detector: str
    encoder: str
    shots: int
    normals: str
    settings: dict[str, Any]
    dataset: str
    seed: int

    @property
    def title(self) -> str:
        """One line for people."""
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        name = f"{self.detector}:{self.encoder}" if self.encoder else self.detector
        return f"anomaly maps by {name}, {self.shots} shots{settings}, on {self.dataset}, seed {self.seed}"

    def facts(self) -> dict[str, str]:
        """Returns what `--only` may name."""
        names = ("detector", "encoder", "shots", "dataset", "seed")
        return {name: str(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class EfficiencyTask:
    """A measurement of a detector's cost that is wanted; see `benchmark.efficiency`."""

    backbone: str
    detector: str

    def facts(self) -> dict[str, str]:
        """Returns what `--only` may name."""
        family, _, variant = self.backbone.partition(":")
        return {"backbone": family, "variant": variant, "detector": self.detector}


@dataclass(frozen=True)
class Node:
    """One piece of work: plain data that another process or machine can execute.

    Attributes:
        id: Names the work; the same on every machine. Two nodes with one id would do the same.
        kind: One of `KINDS`.
        title: One line for people.
        needs: Ids of the nodes whose results it takes.
        spec: JSON values, all that `execute` wants to know.
        cpus: Cores that it can use.
        gpus: GPUs that it needs.
    """

    id: str
    kind: str
    title: str
    needs: tuple[str, ...]
    spec: dict[str, Any]
    cpus: int = 1
    gpus: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the node as JSON values."""
        return asdict(self) | {"needs": list(self.needs)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Node:
        """Returns the node of `to_dict`."""
        return cls(**values | {"needs": tuple(values["needs"])})


@dataclass(frozen=True)
class Graph:
    """Nodes by id, each after those that it needs."""

    nodes: dict[str, Node]
    asked: int = field(default=0)
    """How many pieces of work its cells would be, if each did everything itself."""

    @cached_property
    def dependants(self) -> dict[str, list[str]]:
        """Ids of the nodes that need a node directly, by its id."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for name in dict.fromkeys(node.needs):
                found[name].append(node.id)
        return found

    def counts(self) -> dict[str, int]:
        """Returns the number of nodes of each kind that there are, in the order of `KINDS`."""
        counted = Counter(node.kind for node in self.nodes.values())
        return {kind: counted[kind] for kind in KINDS if counted[kind]}

    def of_kind(self, kind: str) -> list[Node]:
        """Returns the nodes of one kind."""
        return [node for node in self.nodes.values() if node.kind == kind]


def build(
    tasks: Iterable[Task | AnomalyTask | EfficiencyTask], protocol: Protocol, *, device: str, results: Path
) -> Graph:
    """Makes the graph of what is wanted; what is named twice is in it once.

    Args:
        tasks: What is wanted.
        protocol: Under which they are run; a set of pretraining recipes has its name.
        device: `cpu` or `cuda`.
        results: Folder of records.

    Raises:
        UserError: A combination that cannot be, or unknown names.
    """
    builder = _Builder(protocol, device, results)
    for task in tasks:
        if isinstance(task, Task):
            builder.cell(task)
        elif isinstance(task, AnomalyTask):
            builder.anomaly(task)
        else:
            builder.efficiency(task)
    return Graph(builder.nodes, builder.asked)


class _Builder:
    """Collects nodes; what was asked for before is not made twice."""

    def __init__(self, protocol: Protocol, device: str, results: Path):
        self.nodes: dict[str, Node] = {}
        self.asked = 0
        self._protocol, self._device, self._results = protocol, device, str(results.absolute())
        self._starts: dict[str, tuple[str, ...]] = {}
        self._upstream: dict[str, int] = {}

    def cell(self, task: Task) -> None:
        cell, choice = task.cell, task.choice
        needs = (self._dataset(cell.dataset), *self._start(cell, choice))
        finetune = dict(choice.changes.get("finetune", {}))
        node = self._add(
            "cell",
            cell.title if task.label is None else f"{cell.title}, {task.label}",
            needs,
            {
                "cell": vars(cell).copy(),
                "choice": dict(vars(choice)),
                "protocol": self._protocol.id,
                "label": task.label,
            },
            identity={"cell": vars(cell), "protocol": self._protocol.id, "finetune": finetune},
        )
        self.asked += 1 + self._above(node)

    def anomaly(self, task: AnomalyTask) -> None:
        spec = vars(task).copy()
        if task.shots == 0 and task.detector != "random":
            spec["seed"] = 0  # nothing is chosen
        self._add("anomaly", task.title, (self._dataset(task.dataset),), spec)
        self.asked += 2

    def efficiency(self, task: EfficiencyTask) -> None:
        title = f"cost of {task.detector} with {task.backbone}"
        self._add("efficiency", title, (), vars(task) | {"protocol": self._protocol.id})
        self.asked += 1

    def _above(self, name: str) -> int:
        """Returns how many nodes one node stands on."""
        if name not in self._upstream:
            seen: set[str] = set()
            left = list(self.nodes[name].needs)
            while left:
                one = left.pop()
                if one not in seen:
                    seen.add(one)
                    left += self.nodes[one].needs
            self._upstream[name] = len(seen)
        return self._upstream[name]

    def _dataset(self, name: str) -> str:
        spec = {"name": name, "procedural": self._protocol.procedural, "protocol": self._protocol.id}
        return self._add("dataset", f"dataset {name}", (), spec)

    def _corpus(self, name: str) -> str:
        return self._add("corpus", f"corpus {name}", (), {"name": name})

    def _weights(self, spec: str) -> str:
        return self._add("weights", f"weights {spec}", (), {"spec": spec})

    def _start(self, cell: Cell, choice: Choice) -> tuple[str, ...]:
        """Returns the nodes that make what a cell begins with; looked up for all but the first seed and dataset."""
        name = content_key(
            [
                cell.backbone,
                cell.variant,
                cell.detector if choice.mode in ("coco", "agssp") else "",
                dict(vars(choice)),
            ]
        )
        if name not in self._starts:
            self._starts[name] = self._make_start(cell, choice)
        return self._starts[name]

    def _make_start(self, cell: Cell, choice: Choice) -> tuple[str, ...]:
        if choice.mode == "scratch":
            return ()
        if choice.mode in PRETRAINED_HERE:
            return (self._pretraining(cell, choice),)
        try:
            backbone = backbones.get(cell.backbone, cell.variant)
            return (self._weights(choice.weights or public_weights(choice, backbone, cell.detector)),)
        except UserError as error:
            # One reason for all cells that would begin with them; the others go on.
            title = f"weights of {choice.mode} by {choice.resolved_method} for {cell.backbone}:{cell.variant}"
            return (self._add("weights", title, (), {"unknown": str(error)}),)

    def _pretraining(self, cell: Cell, choice: Choice) -> str:
        """Adds the chain of `agssp.stages` and returns its last node."""
        recipe_set = self._protocol.id
        setup = recipes.setup(recipe_set)
        method = choice.resolved_method
        recipes.check_combination(cell.backbone, method)
        corpus = corpora.full_name(choice.corpus or setup.corpus)
        source = choice.maps or setup.maps.source
        model = f"{cell.backbone}:{cell.variant}"
        init = choice.init or setup.initial_weights(model, method) or "none"
        images = self._corpus(corpus)
        needs = (images,) if init == "none" else (images, self._weights(init))
        from_maps = {"recipes": recipe_set, "corpus": corpus, "maps": source}
        guided = choice.mode != "industrial"
        maps = (
            self._add("maps", f"anomaly maps of {corpus} by {source}", (images,), from_maps)
            if guided
            else None
        )
        spec = {
            "mode": "agbp" if guided else "industrial",
            "backbone": model,
            "method": method,
            "recipes": recipe_set,
            "corpus": corpus,
            "maps": source if guided else None,
            "init": init,
            "seed": choice.seed,
            "changes": self._changes(cell, choice, "backbone"),
        }
        title = f"{model} backbone by {method} on {corpus}" + (" guided by the maps" if guided else "")
        backbone = self._add("backbone", title, needs if maps is None else (*needs, maps), spec)
        if maps is None or choice.mode == "agbp":
            return backbone
        boxes = self._add("boxes", f"pseudo boxes of {corpus} by {source}", (maps,), from_maps)
        changes = self._changes(cell, choice, "backbone") | self._changes(cell, choice, "detector")
        spec |= {"mode": "agssp", "detector": cell.detector, "changes": changes}
        return self._add(
            "detector",
            f"{cell.detector} with {model} ({method}) on the pseudo boxes",
            (boxes, backbone),
            spec,
        )

    def _changes(self, cell: Cell, choice: Choice, stage: str) -> dict[str, Any]:
        """Returns a stage's changed settings by its name; nothing where they are the recipe's own."""
        changes = choice.changes.get(stage, {})
        if not changes:
            return {}
        recipe: BackbonePretraining | DetectorPretraining = (
            recipes.backbone_pretraining(self._protocol.id, cell.backbone, choice.resolved_method)
            if stage == "backbone"
            else recipes.detector_pretraining(self._protocol.id, cell.backbone, cell.detector)
        )
        return {} if recipes.changed(recipe, changes) == recipe else {stage: dict(changes)}

    def _add(
        self,
        kind: str,
        title: str,
        needs: Sequence[str],
        spec: dict[str, Any],
        identity: dict[str, Any] | None = None,
    ) -> str:
        """Adds a node unless it is there; returns its id."""
        name = f"{kind}-{content_key([spec if identity is None else identity, list(needs)])[:16]}"
        if name not in self.nodes:
            gpus = int(self._device == "cuda" and kind in COMPUTING)
            site = {"device": self._device} | (
                {"results": self._results} if kind in ("cell", "anomaly") else {}
            )
            cpus = _CPUS_BESIDE_GPU if gpus else 1
            self.nodes[name] = Node(name, kind, title, tuple(needs), spec | site, cpus, gpus)
        return name
