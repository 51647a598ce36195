"""What a node does: `execute` obtains one stage or runs one cell, in this process. Every engine calls it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.matrix import notes
from benchmark.matrix.graph import Node
from benchmark.matrix.schedule import GOOD, Outcome
from datasets_builders import storage
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    from agssp.stages import Feed, Stage
    from baselines.artifacts import Artifact, Made

_ENOUGH_BYTES = 2**30
"""Of disk: what a stage writes at once, state and weights of the largest detector, is about as much."""


def execute(node: Node, log: Path | None = None) -> Outcome:
    """Does a node's work, or finds that it was done before; what it needs must have been executed.

    Everything is content-keyed, locked and resumable: the same node may be executed again, or by two processes at once.

    Args:
        node: The work.
        log: File that gets all that is printed meanwhile, by libraries too.

    Returns:
        What became of it. An error is an outcome, too; only KeyboardInterrupt and SystemExit leave this function.
    """
    started = time.perf_counter()
    try:
        with _printed_to(log):
            outcome = _attempt(node)
    except OSError as error:  # the log itself cannot be written
        outcome = Outcome(
            "failed", f"Its log {log} cannot be written: {error.strerror}.{_scarce_room(node.spec)}"
        )
    if outcome.status in GOOD:
        with contextlib.suppress(OSError):  # only a dry run misses the note
            notes.write(node, outcome)
    values = vars(outcome) | {"seconds": time.perf_counter() - started, "log": str(log) if log else None}
    return Outcome(**values)


def _attempt(node: Node) -> Outcome:
    try:
        return _WORK[node.kind](node.spec)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return Outcome("failed", str(error))
    except Exception as error:
        traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {error}{_scarce_room(node.spec)}")


def _scarce_room(spec: dict[str, Any]) -> str:
    """Returns a sentence where a disk is nearly full: what libraries say then is often about something else."""
    for place in (storage.home(), Path(spec.get("results", storage.home()))):
        with contextlib.suppress(OSError):  # it does not exist yet
            free = shutil.disk_usage(place).free
            if free < _ENOUGH_BYTES:
                room = f"{free / 2**20:.0f} MiB are free on the disk of {place}"
                return f"\n  {room}: make room, and give the same command."
    return ""


def _dataset(spec: dict[str, Any]) -> Outcome:
    from benchmark.planning import check_whole
    from datasets_builders import prepared

    found = prepared.prepare(spec["name"])
    if not spec["procedural"]:
        check_whole(spec["name"], spec["protocol"])
    return Outcome("done" if found.built else "found")


def _corpus(spec: dict[str, Any]) -> Outcome:
    from datasets_builders import corpus

    return Outcome("done" if corpus.prepare_corpus(spec["name"]).built else "found")


def _weights(spec: dict[str, Any]) -> Outcome:
    if "unknown" in spec:
        raise UserError(spec["unknown"])
    from baselines import weights

    return Outcome("found", key=weights.resolve(spec["spec"]).sha256)


def _maps(spec: dict[str, Any]) -> Outcome:
    return _obtain(_map_stages(spec)[:1])


def _boxes(spec: dict[str, Any]) -> Outcome:
    return _obtain(_map_stages(spec))


def _map_stages(spec: dict[str, Any]) -> tuple[Stage, Stage]:
    from agssp.stages import map_stages

    return map_stages(spec["recipes"], spec["corpus"], spec["maps"], spec["device"])


def _pretraining(spec: dict[str, Any]) -> Outcome:
    """Backbone or detector: the last stage of the request's chain."""
    from agssp.stages import Request, backbone_of, chain
    from baselines.training.resources import default_workers

    request = Request(
        mode=spec["mode"],
        backbone=backbone_of(spec["backbone"], {}),
        method=spec["method"],
        detector=spec.get("detector", "yolov8"),  # matters to the mode agssp alone
        recipes=spec["recipes"],
        corpus=spec["corpus"],
        maps=spec["maps"],
        init=spec["init"],
        seed=spec["seed"],
        device=spec["device"],
        workers=default_workers(spec["device"]),
        changes=spec["changes"],
    )
    return _obtain(chain(request))


def _obtain(stages: Sequence[Stage]) -> Outcome:
    """Makes the last stage of a chain unless it is there, or another process makes it meanwhile."""
    from agssp.display import console, show_stage
    from agssp.stages import obtain_all

    *before, last = stages
    here = []

    def work(folder: Path, above: dict[str, Artifact], feed: Feed) -> Made:
        here.append(last.kind)
        return last.work(folder, above, feed)

    made = obtain_all([*before, replace(last, work=work)], show_stage, console.print)
    return Outcome("done" if here else "found", key=made[-1].key)


def _cell(spec: dict[str, Any]) -> Outcome:
    from baselines import backbones
    from benchmark import protocol as protocols
    from benchmark.cell_run import Track, run_cell
    from benchmark.cells import Cell
    from benchmark.modes import Choice, start

    cell, choice = Cell(**spec["cell"]), Choice(**spec["choice"])
    protocol = protocols.load(spec["protocol"])
    protocol = protocol.changed(cell.backbone, cell.detector, choice.changes.get("finetune", {}))
    begin = start(
        choice,
        backbones.get(cell.backbone, cell.variant),
        cell.detector,
        recipe_set=protocol.id,
        device=spec["device"],
    )
    found = run_cell(Track(protocol, begin, spec["device"], Path(spec["results"])), cell)
    if found["status"] == "failed":
        return Outcome("failed", found["reason"])
    return Outcome(
        "found" if found["status"] == "already recorded" else "done",
        key=found["key"],
        record=found["record"],
        result=found["last"],
    )


def _anomaly(spec: dict[str, Any]) -> Outcome:
    from agssp.map_sources import SourceOptions
    from benchmark.anomaly import run_anomaly

    found = run_anomaly(
        detector=spec["detector"],
        encoder=spec["encoder"],
        dataset=spec["dataset"],
        shots=spec["shots"],
        seeds=[spec["seed"]],
        normals=spec["normals"],
        device=spec["device"],
        results=Path(spec["results"]),
        options=SourceOptions(settings=spec["settings"]),
    )["records"][0]
    parts = {part: found["metrics"][part] for part in ("image", "pixel")}
    return Outcome(
        "found" if found["status"] == "already recorded" else "done",
        record=found["record"],
        result={f"{part}_auroc": numbers["auroc"] for part, numbers in parts.items() if numbers is not None},
    )


def _efficiency(spec: dict[str, Any]) -> Outcome:
    """Measures once for each detector, device and torch; the result lies in the cache."""
    import torch

    from benchmark.efficiency import describe, measure, of_names
    from benchmark.environment import collect

    subject = of_names(spec["backbone"], spec["detector"], spec["protocol"], classes=6, image_size=None)
    inputs = {
        "stage": "efficiency",
        "backbone": subject.backbone.config,
        "neck": subject.backbone.neck,
        "detector": subject.detector,
        "recipe": subject.recipe.model_dump(mode="json"),
        "classes": subject.classes,
        "device": torch.cuda.get_device_name() if spec["device"] == "cuda" else collect("cpu").cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    key = storage.content_key(inputs)
    place = notes.folder() / "efficiency" / f"{key}.json"
    there = place.is_file()
    if not there:
        measured = measure(subject, spec["device"])
        with storage.atomic_file(place) as temporary:
            temporary.write_text(json.dumps(measured), encoding="utf-8")
    found = json.loads(place.read_bytes())
    print("\n".join(describe(found)))
    return Outcome("found" if there else "done", key=key, result=found)


_WORK: dict[str, Callable[[dict[str, Any]], Outcome]] = {
    "dataset": _dataset,
    "corpus": _corpus,
    "weights": _weights,
    "maps": _maps,
    "boxes": _boxes,
    "backbone": _pretraining,
    "detector": _pretraining,
    "cell": _cell,
    "anomaly": _anomaly,
    "efficiency": _efficiency,
}


@contextlib.contextmanager
def _printed_to(log: Path | None) -> Iterator[None]:
    """Sends standard output and error to a file, also what compiled libraries and programs print."""
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("a", buffering=1, encoding="utf-8") as file:
        kept = [os.dup(1), os.dup(2)]
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            # Where these are not the process's own (Ray, notebooks, tests), the descriptors alone are not enough.
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
