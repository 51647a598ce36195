"""Presets: which cells a table has, as data in `presets/*.yaml` or in a file of the user's.

A preset has `title`, `datasets` and any of the lists `cells`, `anomaly` and `efficiency`. In an entry, a list of values
stands for all of them, and a mapping `{paper: ..., mini: ..., default: ...}` for what a protocol takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from agssp.stages import backbone_of
from baselines.training.recipes import Settings
from benchmark.cells import expand
from benchmark.matrix.graph import AnomalyTask, EfficiencyTask, Task
from benchmark.modes import Choice
from benchmark.protocol import Protocol
from datasets_builders import registry
from datasets_builders.errors import UserError, unknown_name

_FOLDER = Path(__file__).with_name("presets")
_LARGEST = 2**20
_FAMILIES = {"paper", "mini", "mock", "default"}


class Cells(Settings):
    """Cells of one technique; the fields are the options of `run`."""

    label: str | None = None
    backbone: str
    mode: str
    method: str | None = None
    detector: str = "yolov8"
    weights: str | None = None
    maps: str | None = None
    corpus: str | None = None
    init: str | None = None
    pretraining_seed: int = Field(default=0, ge=0)
    changes: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Anomaly(Settings):
    """One detector of anomalies; the fields are the options of `anomaly`."""

    detector: str
    encoder: str = ""
    shots: int = Field(default=4, ge=0)
    normals: str = "labelled"
    settings: dict[str, Any] = Field(default_factory=dict)


class Efficiency(Settings):
    """One detector whose cost is measured."""

    backbone: str
    detector: str = "yolov8"


class _Preset(Settings):
    title: str
    against: str | None = None
    datasets: Any
    seeds: list[int] | None = None
    cells: list[dict[str, Any]] = Field(default_factory=list)
    anomaly: list[dict[str, Any]] = Field(default_factory=list)
    efficiency: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """What a preset asks for under a protocol.

    Attributes:
        name: The preset's.
        title: One line for people.
        against: Mode of the baseline, or None.
        tasks: Everything that it wants, in its order.
    """

    name: str
    title: str
    against: str | None
    tasks: tuple[Task | AnomalyTask | EfficiencyTask, ...]


AnyEntry = TypeVar("AnyEntry", Cells, Anomaly, Efficiency)


def names() -> list[str]:
    """Returns the presets that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read(name: str, protocol: Protocol, seeds: list[int] | None = None) -> Wanted:
    """Reads a preset and resolves it under a protocol.

    Args:
        name: One of `names()`, or a YAML file.
        protocol: Gives what the preset leaves open.
        seeds: Instead of the preset's or protocol's.

    Raises:
        UserError: There is no such preset, or something in it cannot be; names the file and the entry.
    """
    place = _place(name)
    preset = _load(place)
    datasets = _datasets(_resolved(preset.datasets, protocol), protocol, place)
    chosen = seeds if seeds is not None else preset.seeds
    tasks: list[Task | AnomalyTask | EfficiencyTask] = []
    for entry in _entries(preset.cells, Cells, protocol, place):
        choice = Choice(
            mode=entry.mode,
            method=entry.method,
            weights=entry.weights,
            maps=entry.maps,
            corpus=entry.corpus,
            init=entry.init,
            seed=entry.pretraining_seed,
            changes=entry.changes,
        )
        cells = expand(
            protocol,
            backbone=entry.backbone,
            choice=choice,
            detector=entry.detector,
            datasets=datasets,
            seeds=chosen,
        )
        tasks += [Task(cell, choice, entry.label) for cell in cells]
    for scored in _entries(preset.anomaly, Anomaly, protocol, place):
        for dataset, seed in product(datasets, chosen or [0]):
            tasks.append(AnomalyTask(**scored.model_dump(), dataset=dataset, seed=seed))
    for measured in _entries(preset.efficiency, Efficiency, protocol, place):
        model = backbone_of(measured.backbone, protocol.variants)
        tasks.append(EfficiencyTask(model.id, measured.detector))
    return Wanted(place.stem, preset.title, preset.against, tuple(tasks))


def select(
    tasks: Sequence[Task | AnomalyTask | EfficiencyTask], only: str | None, limit: int | None
) -> tuple[Task | AnomalyTask | EfficiencyTask, ...]:
    """Keeps some tasks.

    Args:
        tasks: All.
        only: Such as `backbone=swin,mode=agssp`; a name given twice takes either value. None keeps all.
        limit: At most so many, from the front; None keeps all.

    Raises:
        UserError: A name that no task has, or nothing is left.
    """
    wanted: dict[str, set[str]] = {}
    for word in (only or "").split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        if equals and name and value:
            wanted.setdefault(name, set()).add(value)
        elif word.strip():
            raise UserError(f"--only {only}: write NAME=VALUE,..., such as backbone=swin,mode=agssp.")
    known = sorted({name for task in tasks for name in task.facts()})
    for name in wanted:
        if name not in known:
            raise unknown_name("word of --only", name, known, see="docs/matrix.md")
    kept = [
        task for task in tasks if all(task.facts().get(name) in values for name, values in wanted.items())
    ]
    if not kept:
        values = {name: sorted({task.facts().get(name, "") for task in tasks}) for name in wanted}
        there = "; ".join(f"{name}: {', '.join(filter(None, found))}" for name, found in values.items())
        raise UserError(f"--only {only} leaves nothing. What there is: {there}.")
    return tuple(kept[:limit])


def _place(name: str) -> Path:
    if name in names():
        return _FOLDER / f"{name}.yaml"
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(f"There is no preset file {name}.")
    raise unknown_name(
        "preset", name, names(), see="docs/matrix.md; your own: python -m benchmark matrix FILE.yaml"
    )


def _load(path: Path) -> _Preset:
    if path.stat().st_size > _LARGEST:
        raise UserError(f"{path} is too large for a preset.")
    try:
        return _Preset.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML file: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {_first(error)}. What a preset holds: docs/matrix.md") from None


def _resolved(value: Any, protocol: Protocol) -> Any:
    """Takes, of every mapping by protocol, what is meant for this one."""
    if isinstance(value, Mapping):
        if value and value.keys() <= _FAMILIES:
            if protocol.name not in value and "default" not in value:
                raise UserError(
                    f"This preset says nothing for {protocol.id} (only for: {', '.join(value)}). Add: default: ..."
                )
            return _resolved(value.get(protocol.name, value.get("default")), protocol)
        return {name: _resolved(inner, protocol) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, protocol) for inner in value]
    return value


def _datasets(value: Any, protocol: Protocol, place: Path) -> list[str]:
    if value == "all":
        return list(protocol.datasets)
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise UserError(f"{place}: datasets: give `all` or a list of names.")
    for name in value:
        registry.card(name)
    return value


def _entries(
    listed: Sequence[dict[str, Any]], model: type[AnyEntry], protocol: Protocol, place: Path
) -> Iterator[AnyEntry]:
    """Yields every combination of the values of every entry, each once."""
    seen = []
    for number, raw in enumerate(listed, start=1):
        entry = _resolved(raw, protocol)
        values = [value if isinstance(value, list) else [value] for value in entry.values()]
        for combination in product(*values):
            try:
                made = model.model_validate(dict(zip(entry, combination, strict=True)))
            except ValidationError as error:
                raise UserError(
                    f"{place}: entry {number} of {model.__name__.lower()}: {_first(error)}"
                ) from None
            if made not in seen:
                seen.append(made)
                yield made


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
