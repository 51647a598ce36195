"""How a record is made again: a command, and above it everything that the command must find.

What is printed is a shell script whose preparations are comments: code, packages, data and weights are brought to
where the record's were, each with its version or hash, and then the last line runs as it is.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agssp import recipes
from baselines import backbones
from benchmark import protocol as protocols
from benchmark.anomaly_records import RECORD_FILE as ANOMALY_FILE
from benchmark.anomaly_records import AnomalyRecord
from benchmark.anomaly_records import read_record as read_anomaly_record
from benchmark.environment import Environment
from benchmark.record_schema import DatasetUsed, Pretraining, ProtocolUsed
from benchmark.records import Record, read_record
from datasets_builders.errors import UserError

PRESET = "reproduce.yaml"
"""File that a record's own settings are written to, where they are not the recipes'."""
LIST = "normals.txt"
"""File of normal images, where a record was given one."""
RESULTS = "reproduced"
"""Folder that the command writes to: never the one that the record lies in."""

_SWITCHES = {
    "vv": "--no-vv",
    "descriptions": "--no-descriptions",
    "layer_aliasing": "--layer-aliasing",
    "redundancy_removal": "--redundancy-removal",
}


def how(path: Path) -> str:
    """Returns the script that makes a record again.

    Args:
        path: A record of either kind: its file, or the folder that holds it.

    Raises:
        UserError: There is no such record, or it does not say how it was made.
    """
    file = path / ANOMALY_FILE if (path / ANOMALY_FILE).is_file() else path
    preset = None
    if file.name == ANOMALY_FILE:
        anomaly = read_anomaly_record(file)
        facts, words, environment = _anomaly_facts(anomaly), anomaly_command(anomaly), anomaly.environment
    else:
        record = read_record(path)
        changes = changes_of(record)
        facts, words, environment = _facts(record, changes), command(record), record.environment
        if changes:
            preset, words = _preset(record, changes)
    # What a record says is a stranger's text: no line of it can leave its comment, no word its quotes.
    lines = [f"# {line}".rstrip() for line in facts]
    if preset is not None:
        lines.append(f"printf '%s\\n' {shlex.quote(json.dumps(preset))} > {PRESET}")
    threads = f"OMP_NUM_THREADS={environment.threads} " if environment.threads else ""
    if environment.threads and preset is not None and environment.device == "cpu":
        # The workers of a matrix compute on all cores that they may use.
        threads = f"taskset --cpu-list 0-{environment.threads - 1} "
    return "\n".join([*lines, threads + shlex.join(words)]) + "\n"


def command(record: Record) -> list[str]:
    """Returns the words of the command that makes a record again, in a folder of its own.

    Raises:
        UserError: Its pretraining does not say how it was made.
    """
    place = {"dataset": record.cell.dataset, "protocol": record.protocol.id, "seeds": str(record.cell.seed)}
    return _words("run", _technique(record) | place, record.environment)


def _technique(record: Record) -> dict[str, str]:
    """Returns what a row is made of, by the names of the options of `run`."""
    cell = record.cell
    options = {"backbone": f"{cell.backbone}:{cell.variant}", "mode": cell.mode, "detector": cell.detector}
    if cell.method not in ("-", "detection"):
        options["method"] = cell.method
    if record.pretraining is not None:
        options |= _pretraining_options(record.pretraining)
    elif record.weights is not None:
        options["weights"] = record.weights.source
    return options


def _preset(record: Record, changes: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Returns a matrix of this one cell with settings of its own, and the command that runs it."""
    entry: dict[str, Any] = {name: _line(text) for name, text in _technique(record).items()}
    if seed := entry.pop("pretraining-seed", None):
        entry["pretraining_seed"] = int(seed) if seed.isdecimal() else seed
    preset = {
        "title": "one record again",
        "datasets": [record.cell.dataset],
        "cells": [entry | {"changes": changes}],
    }
    options = {"protocol": record.protocol.id, "seeds": str(record.cell.seed), "workers": "1"}
    words = _words("matrix", options, record.environment)
    return preset, [*words[:4], PRESET, *words[4:]]


def changes_of(record: Record) -> dict[str, dict[str, Any]]:
    """Returns the settings that are not those of the recipes of that name here, by stage.

    They are an ablation's, or those of another version of the recipes. Empty where this version has no such recipes.
    """
    cell, used = record.cell, record.protocol
    known = used.id in protocols.names() and used.id in recipes.names()
    if not known or cell.backbone not in backbones.names():
        return {}
    stages = record.pretraining.stages if record.pretraining else {}
    pairs: dict[str, tuple[object, BaseModel]] = {
        "finetune": (used.settings, protocols.load(used.id).recipe(cell.backbone, cell.detector))
    }
    if "backbone" in stages and cell.backbone in recipes.METHODS.get(cell.method, ()):
        recipe = recipes.backbone_pretraining(used.id, cell.backbone, cell.method)
        pairs["backbone"] = (stages["backbone"].inputs.get("recipe"), recipe)
    if "detector" in stages:
        there = recipes.detector_pretraining(used.id, cell.backbone, cell.detector)
        pairs["detector"] = (stages["detector"].inputs.get("recipe"), there)
    found = {kind: _difference(*pair) for kind, pair in pairs.items()}
    return {kind: settings for kind, settings in found.items() if settings}


def _difference(settings: object, recipe: BaseModel) -> dict[str, Any]:
    """Returns the settings that differ from a recipe's; one that is left out has its default."""
    if not isinstance(settings, dict):
        return {}
    ours = recipe.model_dump(mode="json")
    left_out = {
        name: field.default
        for name, field in type(recipe).model_fields.items()
        if isinstance(field.default, bool | int | float | str | None)
    }
    theirs, ours = left_out | settings, left_out | ours
    return {name: value for name, value in sorted(theirs.items()) if value != ours.get(name)}


def anomaly_command(record: AnomalyRecord) -> list[str]:
    """Returns the words of the command that makes a record of the anomaly benchmark again."""
    cell = record.cell
    options = {
        "detector": cell.detector,
        "encoder": cell.encoder,
        "dataset": cell.dataset,
        "shots": str(cell.shots),
        "seeds": str(cell.seed),
    }
    if cell.shots:
        options["normals"] = LIST if _rule(record) == "list" else _rule(record)
    if "image_score" in cell.settings:
        options["image-score"] = str(cell.settings["image_score"])
    if precision := _encoder(record).get("precision"):
        options["precision"] = str(precision)
    switches = [option for name, option in _SWITCHES.items() if name in cell.settings]
    given = {name: text for name, text in options.items() if text}
    return _words("anomaly", given, record.environment) + switches


def _words(task: str, options: dict[str, str], environment: Environment) -> list[str]:
    # `--name=value` is one word: a value that begins with a dash stays a value.
    found = [f"--{name}={_line(value)}" for name, value in options.items()]
    return [
        "python",
        "-m",
        "benchmark",
        task,
        *found,
        f"--device={environment.device}",
        f"--results={RESULTS}",
    ]


def _pretraining_options(pretraining: Pretraining) -> dict[str, str]:
    if "backbone" not in pretraining.stages:
        raise UserError(
            "The record's pretraining has no backbone stage: nothing says how its weights were made."
        )
    backbone = pretraining.stages["backbone"]
    init = _init(pretraining)
    options = {
        "corpus": pretraining.corpus,
        "init": "none" if init is None else init[0],
        "pretraining-seed": str(backbone.inputs.get("seed")),
    }
    return options | ({} if pretraining.maps is None else {"maps": pretraining.maps})


def _init(pretraining: Pretraining) -> tuple[str, str] | None:
    """Returns source and sha256 of the weights that the pretraining began with; None for random values."""
    told = pretraining.stages["backbone"].summary.get("init")
    if not isinstance(told, dict):
        return None
    return _line(told.get("source")), _line(told.get("sha256"))


def _facts(record: Record, changes: dict[str, dict[str, Any]]) -> Iterator[str]:
    cell, metrics = record.cell, record.last.metrics
    yield f"{cell.backbone}:{cell.variant} {cell.mode} {cell.detector} on {cell.dataset}, seed {cell.seed}"
    yield f"gives mAP@.5 {metrics.map50!r}, mAP@.5:.95 {metrics.map50_95!r} after epoch {record.last.epoch}"
    yield f"      in {RESULTS}/{record.folder}"
    yield f"key {record.key}"
    yield from _protocol_facts(record.protocol)
    for stage, settings in changes.items():
        names = ", ".join(map(_line, settings))
        yield f"  {stage} has settings of its own here, in {PRESET}: {names}"
    yield from _environment_facts(record.environment)
    yield from _dataset_facts(record.dataset)
    if record.pretraining is not None:
        yield from _pretraining_facts(record.pretraining, record.protocol.id)
    elif record.weights is not None:
        yield f"weights {record.weights.source}, sha256 {record.weights.sha256}"


def _protocol_facts(used: ProtocolUsed) -> Iterator[str]:
    yield f"protocol {used.id}, sha256 {used.sha256}"
    if used.id not in protocols.names():
        yield "  CAUTION: this version of the project has no such protocol; the code below has"
    if reason := protocols.invalid_reason(used.name, used.version):
        yield f"  CAUTION: no longer valid: {reason}"


def _environment_facts(environment: Environment) -> Iterator[str]:
    yield f"code agssp-bench {environment.project_version}, Python {environment.python}"
    if environment.git_commit is not None:
        yield f"  git checkout {environment.git_commit}"
        if environment.git_dirty:
            yield "  CAUTION: files differed from that commit, and nothing holds the difference"
    versions = environment.packages.items()
    # The part after a plus names a build, such as +cpu, and is not on every index.
    pins = [f"{name}=={version.partition('+')[0]}" for name, version in versions]
    yield f"  pip install {shlex.join(pins)}"
    builds = [f"{name} {version}" for name, version in versions if "+" in version]
    machine = [environment.platform, environment.cpu or "", *(gpu.name for gpu in environment.gpus), *builds]
    yield f"  on {', '.join(filter(None, machine))}; other processors and builds round differently"


def _dataset_facts(dataset: DatasetUsed) -> Iterator[str]:
    splits = ", ".join(f"{count} {split}" for split, count in dataset.splits.items())
    yield f"dataset {dataset.name}, {splits} images, fingerprint {dataset.fingerprint}"
    yield from _preparation(dataset.name.partition("/")[0], dataset.procedural)


def _preparation(name: str, procedural: bool) -> Iterator[str]:
    prepare = shlex.join(["python", "-m", "datasets_builders", "prepare", name, "--raw", "DIR"])
    yield "  generated on first use" if procedural else f"  {prepare}"


def _pretraining_facts(pretraining: Pretraining, recipes: str) -> Iterator[str]:
    yield f"corpus {pretraining.corpus}, fingerprint {pretraining.corpus_fingerprint}"
    yield from _preparation(pretraining.corpus, pretraining.corpus.startswith("corpus_synthetic/"))
    yield f"recipes {recipes}; stages, made as needed:"
    for kind, stage in pretraining.stages.items():
        yield f"  {kind} {stage.key}"
        if kind == "maps":
            yield f"    by {pretraining.maps}: {_hashes_in(stage.inputs.get('source'))}"
    if "backbone" in pretraining.stages and (init := _init(pretraining)) is not None:
        yield f"  beginning with the weights {init[0]}, sha256 {init[1]}"


def _anomaly_facts(record: AnomalyRecord) -> Iterator[str]:
    cell = record.cell
    encoder = f":{_line(cell.encoder)}" if cell.encoder else ""
    yield f"{cell.detector}{encoder} on {cell.dataset}, {cell.shots} normal images, seed {cell.seed}"
    yield f"      in {RESULTS}/{record.file.parent}"
    yield f"key {record.key}"
    yield from _environment_facts(record.environment)
    yield from _dataset_facts(record.dataset)
    yield f"source {_hashes_in(record.inputs.get('source'))}"
    if cell.shots and _rule(record) == "list":
        yield f"{LIST}: the list of normal images that the record was given, one id a line; it used"
        yield from (f"  {image}" for ids in record.normals.values() for image in ids)


def _rule(record: AnomalyRecord) -> str:
    rule = record.inputs.get("normals")
    return _line(rule.get("rule")) if isinstance(rule, dict) else "labelled"


def _encoder(record: AnomalyRecord) -> dict[str, object]:
    source = record.inputs.get("source")
    encoder = source.get("encoder") if isinstance(source, dict) else None
    return dict(encoder) if isinstance(encoder, dict) else {}


def _hashes_in(value: object, name: str = "") -> str:
    """Lists nested settings on one line: versions and hashes of a source of maps."""
    if isinstance(value, dict):
        return ", ".join(_hashes_in(item, f"{name} {_line(key)}".strip()) for key, item in value.items())
    return f"{name} {_line(value)}"


def _line(value: object) -> str:
    """Makes a value one printable line: settings may hold any text."""
    return "".join(filter(str.isprintable, str(value)))
