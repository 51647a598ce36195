"""What `python -m benchmark matrix` does: a preset as a graph, the graph by an engine, its records as a table."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agssp.display import console
from baselines.training.resources import resolve_device
from benchmark import protocol as protocols
from benchmark.matrix import notes, presets
from benchmark.matrix.estimate import Estimate, estimate
from benchmark.matrix.graph import ASKED, Graph, build
from benchmark.matrix.presets import Wanted
from benchmark.matrix.schedule import Engine, Outcome
from benchmark.planning import choose_protocol
from benchmark.protocol import Protocol
from datasets_builders import storage
from datasets_builders.errors import UserError, unknown_name

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; see `python -m benchmark matrix --help`."""

    preset: str
    protocol: str
    only: str | None
    seeds: list[int] | None
    limit: int | None
    engine: str
    address: str | None
    workers: int | None
    device: str
    results: Path


@dataclass(frozen=True)
class MatrixPlan:
    """A matrix, resolved.

    Attributes:
        wanted: The preset's tasks that are left after the filters.
        protocol: Under which they are run.
        reason: Why this one.
        device: `cpu` or `cuda`.
        results: Folder of records.
        graph: All work.
        there: Ids of nodes whose results seem to be there.
        estimate: Time and disk of the rest.
    """

    wanted: Wanted
    protocol: Protocol
    reason: str
    device: str
    results: Path
    graph: Graph
    there: frozenset[str]
    estimate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan for `--json`, without its nodes."""
        left = Counter(self.graph.nodes[name].kind for name in self.there)
        return {
            "preset": self.wanted.name,
            "title": self.wanted.title,
            "against": self.wanted.against,
            "protocol": self.protocol.id,
            "reason": self.reason,
            "device": self.device,
            "results": str(self.results),
            "cache": str(storage.home()),
            "nodes": {
                kind: {"planned": count, "there": left[kind]} for kind, count in self.graph.counts().items()
            },
            "shared": self.graph.asked - len(self.graph.nodes),
            "estimate": self.estimate.to_dict(),
        }


def make_plan(request: Request) -> MatrixPlan:
    """Resolves and checks what was asked for; needs no data, and on a machine without a GPU no torch.

    Raises:
        UserError: Unknown names, or something that cannot be.
    """
    if request.engine not in ENGINES:
        raise unknown_name("engine", request.engine, ENGINES, see="docs/matrix.md")
    if request.limit is not None and request.limit < 1:
        raise UserError(f"--limit {request.limit}: give at least 1.")
    device = resolve_device(request.device) if request.device == "cuda" or _gpu_driver() else "cpu"
    protocol, reason = _protocol(request.protocol, device)
    wanted = presets.read(request.preset, protocol, request.seeds)
    wanted = replace(wanted, tasks=presets.select(wanted.tasks, request.only, request.limit))
    graph = build(wanted.tasks, protocol, device=device, results=request.results)
    there = notes.there(graph.nodes.values())
    rest = [node for node in graph.nodes.values() if node.id not in there]
    return MatrixPlan(
        wanted, protocol, reason, device, request.results, graph, there, estimate(rest, protocol)
    )


def run_matrix(request: Request, *, dry_run: bool) -> dict[str, Any]:
    """Plans a matrix, runs it, and tells on standard error how it goes.

    Returns:
        The plan, each node's outcome, and for cells their numbers, for `--json`.

    Raises:
        UserError: As `make_plan`; the cache or results folder cannot be written; or there is no such engine here.
    """
    from benchmark.matrix.live import live, show_failures, show_plan

    plan = make_plan(request)
    show_plan(plan)
    told = plan.to_dict()
    if dry_run:
        console.print("Nothing was run: --dry-run.")
        return told | {"cells": [_entry(plan, name, None) for name in _asked(plan.graph)]}
    _check_places(plan)
    engine = _engine(request, plan.device)
    with live(plan) as on_event:
        outcomes = engine.run(plan.graph, on_event=on_event)
    show_failures(plan.graph, outcomes)
    return told | {
        "cells": [_entry(plan, name, outcomes[name]) for name in _asked(plan.graph)],
        "executed": _executed(plan.graph, outcomes.items()),
        "failed": [
            {"title": plan.graph.nodes[name].title, "reason": outcome.reason, "log": outcome.log}
            for name, outcome in outcomes.items()
            if outcome.status == "failed"
        ],
    }


def _gpu_driver() -> bool:
    """Tells whether this machine might have a GPU, without importing torch."""
    places = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
    return any(place.exists() for place in places) or shutil.which("nvidia-smi") is not None


def _protocol(name: str, device: str) -> tuple[Protocol, str]:
    if name == "auto":
        return choose_protocol(device, ["all"])
    versions = [known for known in protocols.names() if known.rpartition("-v")[0] == name]
    if versions:  # a family's name is its newest version
        name = max(versions, key=lambda known: int(known.rpartition("-v")[2]))
    return protocols.load(name), "named on the command line"


def _engine(request: Request, device: str) -> Engine:
    if request.engine == "ray":
        from benchmark.matrix.engines.ray import RayEngine

        return RayEngine(request.address)
    if request.address is not None:
        raise UserError("--address is for --engine ray.")
    from benchmark.matrix.engines.local import LocalEngine

    return LocalEngine(request.workers, device)


def _check_places(plan: MatrixPlan) -> None:
    from benchmark.run import check_writable

    check_writable(plan.results, "results folder", "--results DIR")
    check_writable(storage.home(), "cache", f"{storage.HOME_VARIABLE}=DIR python -m benchmark ...")


def _asked(graph: Graph) -> list[str]:
    return [node.id for node in graph.nodes.values() if node.kind in ASKED]


def _entry(plan: MatrixPlan, name: str, outcome: Outcome | None) -> dict[str, Any]:
    """Returns what became of a cell, or of another thing that was asked for."""
    node = plan.graph.nodes[name]
    facts = {key: value for key, value in node.spec.items() if key not in ("device", "results")}
    facts = facts.pop("cell", {}) | facts
    if outcome is None:
        return {
            "kind": node.kind,
            "title": node.title,
            **facts,
            "status": "there" if name in plan.there else "planned",
        }
    return {
        "kind": node.kind,
        "title": node.title,
        **facts,
        "status": outcome.status,
        "reason": outcome.reason,
        "log": outcome.log,
        "record": outcome.record,
        "result": outcome.result,
    }


def _executed(graph: Graph, outcomes: Iterable[tuple[str, Outcome]]) -> dict[str, dict[str, int]]:
    """Returns how many nodes of each kind were done now, found, failed or skipped."""
    counted: dict[str, Counter[str]] = {kind: Counter() for kind in graph.counts()}
    for name, outcome in outcomes:
        counted[graph.nodes[name].kind][outcome.status] += 1
    return {kind: dict(counts) for kind, counts in counted.items()}
