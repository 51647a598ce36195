"""What `verify --how` prints: a command that asks for the record's own key, which no record can break out of."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_anomaly_records import _outputs
from test_anomaly_records import _record as make_anomaly_record
from test_records import STAGE, make_record

import datasets_builders
from baselines import backbones
from benchmark import anomaly_records, cli, protocol, provenance, run
from benchmark.cells import Cell, cell_identity, cell_key
from benchmark.matrix import command, presets, summary
from benchmark.matrix.graph import Task
from benchmark.modes import Choice, start
from benchmark.planning import make_plan
from benchmark.record_schema import Pretraining, StageUsed, WeightsReport, to_json
from benchmark.records import read_record
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

ROOT = Path(__file__).parents[2]
UNKNOWN = make_record().protocol.model_copy(update={"name": "strange"})
HOSTILE = '-x\'; touch "$(id)" `id` # $HOME \\ é'


def store(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "record.json"
    path.write_text(to_json(make_record(**changes)))
    return path


def script_words(script: str) -> list[str]:
    """The words of the last line as a shell reads them; before it come comments, and at most a preset to write."""
    *before, line = script.splitlines()
    preset = [other for other in before if not other.startswith("#")]
    assert len(preset) <= 1
    assert all(other.startswith("printf '%s\\n' '{") for other in preset)
    echo = 'python() { command printf "%s\\0" "$@"; }; taskset() { shift 2; "$@"; }'
    shell = subprocess.run(["/bin/sh", "-c", f"{echo}\n{line}"], capture_output=True, check=True)
    return ["python", *shell.stdout.decode().split("\0")[:-1]]


def key_asked_for(script: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key of the only cell that a script would run; writes the preset that it writes."""
    words = script_words(script)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(run, "run_cells", lambda **what: asked.update(what) or {"cells": []})
    monkeypatch.setattr(
        command, "run_matrix", lambda request, dry_run: asked.update(request=request) or {"cells": []}
    )
    monkeypatch.setattr(summary, "print_summary", lambda outcome: None)
    assert words[:3] == ["python", "-m", "benchmark"]
    for line in script.splitlines():
        if line.startswith("printf"):
            subprocess.run(["/bin/sh", "-c", line], check=True)
    assert cli.run_app(words[3:]) == 0
    if words[3] == "run":
        assert asked.pop("dry_run") is False
        plan = make_plan(**asked)
        (cell,) = plan.cells
        return key_of(cell, plan.choice, plan.protocol)
    request = asked["request"]
    track = protocol.load(request.protocol)
    (task,) = presets.read(request.preset, track, request.seeds).tasks
    assert isinstance(task, Task)
    return key_of(task.cell, task.choice, track)


def key_of(cell: Cell, choice: Choice, track: protocol.Protocol) -> str:
    from benchmark import finetune

    begin = start(
        choice, backbones.get(cell.backbone, cell.variant), cell.detector, recipe_set=track.id, device="cpu"
    )
    inputs = cell_identity(
        cell,
        track.changed(cell.backbone, cell.detector, choice.changes.get("finetune", {})),
        begin,
        dataset_fingerprint=datasets_builders.fingerprint(cell.dataset),
        stage_version=finetune.STAGE_VERSION,
    )
    return cell_key(inputs)


CHOICES = {
    "scratch": Choice("scratch"),
    "imagenet": Choice("imagenet"),
    "a file of weights": Choice("coco", weights="our weights.pth"),
    "custom": Choice("custom", method="ours", weights="our weights.pth"),
    "industrial": Choice("industrial", init="none", seed=3),
    "an ablation": Choice(
        "agssp",
        maps="oracle",
        init="none",
        changes={
            "backbone": {"distillation": {"loss": "l2"}, "iterations": 3},
            "detector": {"frozen_stages": 0},
            "finetune": {"epochs": 2, "frozen_stages": 1, "mixed_precision": True},
        },
    ),
    "agssp": Choice("agssp", method="mocov3", maps="oracle", init="our weights.pth", seed=1),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_command_asks_for_the_records_key(name: str, tmp_path: Path, monkeypatch) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.zeros(1)}, "our weights.pth")
    choice, track = CHOICES[name], protocol.load("mock-v1")
    cell = Cell("lite0", "std", choice.resolved_method, choice.mode, "yolov8", "gc10_toy", 7)
    begin = start(choice, backbones.get("lite0", "std"), "yolov8", recipe_set=track.id, device="cpu")
    recipe = track.changed("lite0", "yolov8", choice.changes.get("finetune", {})).recipe("lite0", "yolov8")
    record = json.loads(store(tmp_path).read_text())
    record["cell"] = vars(cell)
    record["protocol"] |= {"name": "mock", "settings": recipe.model_dump(mode="json")}
    record["dataset"]["name"] = cell.dataset
    record["pretraining"] = record["weights"] = None
    if begin.weights is not None:
        local = begin.weights
        weights = make_record().weights
        assert weights is not None
        record["weights"] = weights.model_dump() | {"source": local.source, "sha256": local.sha256}
    stages = {stage.kind: stage for stage in begin.stages}
    if stages:
        init = {"source": choice.init, "sha256": "c" * 64, "share_of_backbone": 1.0}
        record["pretraining"] = {
            "corpus": stages["backbone"].inputs["corpus"],
            "corpus_fingerprint": stages["backbone"].inputs["corpus_fingerprint"],
            "maps": choice.maps,
            "stages": {
                kind: {
                    "key": stage.key,
                    "inputs": stage.inputs,
                    "summary": {"init": None if choice.init == "none" else init},
                }
                for kind, stage in stages.items()
            },
        }
        record["inputs"]["upstream"] = {begin.stages[-1].kind: begin.stages[-1].key}
    record["key"] = content_key(record["inputs"])
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    script = provenance.how(path)
    assert ("printf" in script) == bool(choice.changes)
    assert provenance.changes_of(read_record(path)).keys() == choice.changes.keys()
    assert key_asked_for(script, monkeypatch) == key_of(cell, choice, track)
    for fact in (record["key"], record["dataset"]["fingerprint"], *(stage.key for stage in stages.values())):
        assert fact in script


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    stage = StageUsed(
        key=content_key({"seed": HOSTILE + "\n"}),
        inputs={"seed": HOSTILE + "\n"},
        summary={"init": {"source": HOSTILE + "\nrm -rf /", "sha256": "\n\x1b[2J"}},
    )
    inputs = make_record().inputs | {"upstream": {"backbone": stage.key}}
    pretraining = Pretraining(
        corpus=HOSTILE, corpus_fingerprint="e" * 64, maps=HOSTILE, stages={"backbone": stage, "maps": STAGE}
    )
    environment = make_record().environment.model_copy(
        update={"packages": {HOSTILE: HOSTILE}, "device": HOSTILE}
    )
    script = provenance.how(
        store(
            tmp_path,
            inputs=inputs,
            key=content_key(inputs),
            pretraining=pretraining,
            environment=environment,
            protocol=UNKNOWN,
        )
    )
    assert "\x1b" not in script
    words = script_words(script)
    assert {
        f"--corpus={HOSTILE}",
        f"--maps={HOSTILE}",
        f"--device={HOSTILE}",
        f"--init={HOSTILE}rm -rf /",
    } < set(words)
    assert f"--pretraining-seed={HOSTILE}" in words
    weights = WeightsReport.model_validate(make_record().weights.model_dump() | {"source": HOSTILE})
    assert f"--weights={HOSTILE}" in script_words(
        provenance.how(store(tmp_path, weights=weights, pretraining=None, protocol=UNKNOWN))
    )


def test_hostile_settings_stay_in_the_preset(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {HOSTILE: HOSTILE + "\n'; touch broken; '"}
    script = provenance.how(
        store(tmp_path, protocol=make_record().protocol.model_copy(update={"settings": settings}))
    )
    assert script_words(script)[3:5] == ["matrix", provenance.PRESET]
    (line,) = [line for line in script.splitlines() if line.startswith("printf")]
    subprocess.run(["/bin/sh", "-c", line], check=True)
    assert {file.name for file in tmp_path.iterdir()} == {"record.json", provenance.PRESET}
    (entry,) = yaml.safe_load((tmp_path / provenance.PRESET).read_text())["cells"]
    assert settings.items() <= entry["changes"]["finetune"].items()


def test_what_stands_in_the_way_of_a_reproduction_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(provenance.protocols, "_invalid", lambda: {"mini": {1: "it was wrong"}})
    dirty = make_record().environment.model_copy(update={"git_commit": "a" * 40, "git_dirty": True})
    script = provenance.how(store(tmp_path, environment=dirty))
    assert "no longer valid: it was wrong" in script
    assert "finetune has settings of its own here, in reproduce.yaml: " in script
    used = make_record().protocol.model_copy(update={"version": 99})
    assert "no such protocol" in provenance.how(store(tmp_path, protocol=used))
    assert "nothing holds the difference" in script
    lost = Pretraining(
        corpus="c", corpus_fingerprint="e" * 64, maps=None, stages={"maps": STAGE}
    )  # fmt: skip
    inputs = make_record().inputs | {"upstream": {"maps": STAGE.key}}
    with pytest.raises(UserError, match="no backbone stage"):
        provenance.how(store(tmp_path, pretraining=lost, inputs=inputs, key=content_key(inputs)))
    with pytest.raises(UserError, match="No record"):
        provenance.how(tmp_path / "nothing")


def test_a_record_of_the_anomaly_benchmark_has_its_command_too(tmp_path: Path, monkeypatch) -> None:
    outputs = _outputs()
    inputs = {
        "source": {"method": "kead", "encoder": {"precision": "fp32", "weights": "9" * 64}},
        "normals": {"rule": "auto"},
    }
    record = make_anomaly_record(outputs, inputs=inputs, key=content_key(inputs))
    cell = record.cell.model_copy(update={"settings": {"vv": False, "image_score": "released"}})
    path = anomaly_records.write_record(record.model_copy(update={"cell": cell}), outputs, tmp_path)
    script = provenance.how(path.parent)
    assert "9" * 64 in script
    words = script_words(script)
    asked: dict[str, Any] = {}
    from benchmark import anomaly

    monkeypatch.setattr(anomaly, "run_anomaly", lambda **what: asked.update(what))
    assert cli.run_app(words[3:]) == 0
    options = asked.pop("options")
    assert (options.precision, options.settings) == ("fp32", {"vv": False, "image_score": "released"})
    assert asked == {
        "detector": "kead", "encoder": "MODEL/tag", "dataset": "neu_det/mini50", "shots": 2, "seeds": [0],
        "normals": "auto", "device": "cpu", "results": Path("reproduced"),
    }  # fmt: skip


@pytest.mark.slow
def test_the_printed_command_gives_the_record_again(tmp_path: Path, agssp_home: Path) -> None:
    """The first run's stages and weights are gone: everything but the generated images is made again."""
    words = [sys.executable, "-m", "benchmark", "run", "--backbone", "csp_darknet", "--mode", "industrial"]
    options = [
        "--protocol",
        "mock-v1",
        "--dataset",
        "gc10_toy",
        "--seeds",
        "5",
        "--pretraining-seed",
        "2",
        "--device",
        "cpu",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def make(*command: str) -> None:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]

    make(*words, *options, "--results", "first")
    (path,) = tmp_path.glob("first/*/*/*/record.json")
    for made in ("artifacts", "runs"):
        shutil.rmtree(agssp_home / made, ignore_errors=True)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    make("/bin/sh", "-c", provenance.how(path))
    first = read_record(path)
    again = read_record(tmp_path / provenance.RESULTS / first.folder)
    ours = {"key", "inputs", "last", "best", "curve", "weights", "protocol", "dataset", "parameters"}
    assert again.model_dump(include=ours) == first.model_dump(include=ours)
    assert shlex.split(provenance.how(path).splitlines()[-1])[0] == "OMP_NUM_THREADS=1"
