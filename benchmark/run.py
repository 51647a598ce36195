"""Runs cells: dataset, finetuning, evaluation, record; skips what is finished, goes on with what is not."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

import datasets_builders
from agssp.display import console, duration, quieten_libraries, show_stage, training_progress
from agssp.stages import weights_of
from baselines import backbones
from benchmark.cells import Cell, cell_identity, cell_key
from benchmark.display import show_plan
from benchmark.modes import Choice
from benchmark.planning import Plan, make_plan
from datasets_builders import registry, storage
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    from baselines.artifacts import Artifact
    from benchmark.finetune import FinetuneResult, Outcome
    from benchmark.records import Pretraining, Record, WeightsReport


def run_cells(
    *,
    backbone: str,
    choice: Choice,
    datasets: list[str] | None,
    detector: str,
    protocol_name: str,
    seeds: list[int] | None,
    device: str,
    results: Path,
    dry_run: bool,
) -> dict[str, Any]:
    """Plans, trains, evaluates and records; tells on standard error what it does.

    Returns:
        The plan, with each cell's `status` (planned, recorded, already recorded, failed), its record and its metrics.

    Raises:
        UserError: Bad input, before anything is trained.
    """
    if device == "cpu":
        # mmengine takes a GPU whenever it sees one; this must be set before torch looks.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    plan = make_plan(
        backbone=backbone,
        choice=choice,
        detector=detector,
        datasets=datasets,
        protocol_name=protocol_name,
        seeds=seeds,
        device=device,
        results=results,
    )
    show_plan(plan)
    outcome = plan.to_dict()
    if dry_run:
        for entry in outcome["cells"]:
            entry["status"] = "planned"
        console.print("Nothing was trained: --dry-run.")
        return outcome
    check_writable(results, "results folder", "--results DIR")
    check_writable(storage.home(), "cache", f"{storage.HOME_VARIABLE}=DIR python -m benchmark ...")
    quieten_libraries()
    # Libraries print to standard output as they please; it belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        for number, (cell, entry) in enumerate(zip(plan.cells, outcome["cells"], strict=True), start=1):
            entry.update(_run_cell(plan, cell, rf"\[{number}/{len(plan.cells)}]"))
    _show_outcome(outcome)
    return outcome


def check_writable(folder: Path, what: str, remedy: str) -> None:
    """Makes sure that a folder exists and takes files, before hours are spent.

    Raises:
        UserError: It does not.
    """
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The {what} {folder} cannot be written ({error.strerror}). Choose another: {remedy}"
        ) from None


def _run_cell(plan: Plan, cell: Cell, number: str) -> dict[str, Any]:
    """Runs one cell to its record; returns what became of it."""
    from baselines.training.hooks import TrainingDivergedError
    from baselines.training.resources import default_workers
    from benchmark import finetune, records

    console.print(f"{number} [bold]{cell.title}[/]")
    with console.status(f"  opening {cell.dataset} (generated on first use where it is procedural)"):
        train = datasets_builders.load(cell.dataset, "train")
    validation = datasets_builders.load(cell.dataset, "validation")
    inputs = cell_identity(
        cell,
        plan.protocol,
        plan.start,
        dataset_fingerprint=datasets_builders.fingerprint(cell.dataset),
        stage_version=finetune.STAGE_VERSION,
    )
    key = cell_key(inputs)
    found = records.find_record(plan.results, key)
    if found:
        console.print(f"  finished before: {found.path}", soft_wrap=True)
        return _result("already recorded", found.path, found.record)
    folder = storage.home() / "runs" / key
    folder.mkdir(parents=True, exist_ok=True)
    try:
        made = plan.start.obtain(show_stage, console.print)
        initial = weights_of(made[-1]) if made else plan.start.weights
        with _claimed(folder, cell), training_progress(f"  {cell.dataset}") as feed:
            result = finetune.finetune(
                backbone=backbones.get(cell.backbone, cell.variant),
                detector=cell.detector,
                recipe=plan.protocol.recipe(cell.backbone, cell.detector),
                train=train,
                validation=validation,
                seed=cell.seed,
                folder=folder,
                workers=default_workers(plan.device),
                on_event=feed,
                weights=initial,
                scope=plan.start.scope or "backbone",
            )
            splits = {"train": len(train), "validation": len(validation)}
            record = _record(plan, cell, key, inputs, result, splits, made)
            path = records.write_record(record, result.last.detections, result.best.detections, plan.results)
            finetune.remove_progress(folder)
    except TrainingDivergedError as error:
        console.print(f"  [red]failed[/]: {error}")
        return {"status": "failed", "reason": str(error)}
    for line in result.weights.describe() if result.weights else ():
        console.print(f"  {line}", soft_wrap=True, highlight=False)
    metrics = record.last.metrics
    resumed = f", resumed {record.resumes}x" if record.resumes else ""
    console.print(
        f"  mAP@.5 [bold]{metrics.map50:.1f}[/] (best {record.best.metrics.map50:.1f}),"
        f" mAP@.5:.95 {metrics.map50_95:.1f}, {duration(result.seconds)}{resumed}"
    )
    console.print(f"  record:  {path}", soft_wrap=True)
    console.print(f"  weights: {result.best.weights}", soft_wrap=True)
    return _result("recorded", path, record)


def _result(status: str, path: Path, record: Record) -> dict[str, Any]:
    return {
        "status": status,
        "record": str(path),
        "key": record.key,
        "last": {"map50": record.last.metrics.map50, "map50_95": record.last.metrics.map50_95},
        "best": {"map50": record.best.metrics.map50, "map50_95": record.best.metrics.map50_95},
    }


def _record(
    plan: Plan,
    cell: Cell,
    key: str,
    inputs: dict[str, Any],
    result: FinetuneResult,
    splits: dict[str, int],
    made: list[Artifact],
) -> Record:
    from benchmark import environment, records

    card = registry.card(cell.dataset)
    protocol = plan.protocol

    def epoch_result(outcome: Outcome) -> records.EpochResult:
        return records.EpochResult(
            epoch=outcome.epoch, metrics=outcome.metrics, detections_sha256=outcome.detections.sha256()
        )

    return records.Record(
        key=key,
        inputs=inputs,
        cell=records.CellIdentity(**vars(cell)),
        protocol=records.ProtocolUsed(
            name=protocol.name,
            version=protocol.version,
            sha256=protocol.sha256(cell.detector),
            settings=protocol.recipe(cell.backbone, cell.detector).model_dump(mode="json"),
        ),
        dataset=records.DatasetUsed(
            name=cell.dataset,
            fingerprint=inputs["dataset_fingerprint"],
            classes=card.classes,
            splits=splits,
            procedural=registry.card(card.dataset).origin == "procedural",
        ),
        last=epoch_result(result.last),
        best=epoch_result(result.best),
        curve=tuple(records.CurvePoint(**point) for point in result.curve),
        weights=_weights_report(result),
        pretraining=_pretraining(plan, made),
        parameters=result.parameters,
        cost={
            artifact.manifest.kind: records.StageCost(
                seconds=artifact.manifest.seconds,
                peak_ram_mib=artifact.manifest.peak_ram_mib,
                peak_gpu_mib=artifact.manifest.peak_gpu_mib,
            )
            for artifact in made
        }
        | {
            "finetune": records.StageCost(
                seconds=result.seconds, peak_ram_mib=result.peak.ram_mib, peak_gpu_mib=result.peak.gpu_mib
            )
        },
        resumes=result.resumes,
        environment=environment.collect(plan.device),
        created=datetime.now(UTC),
    )


def _weights_report(result: FinetuneResult) -> WeightsReport | None:
    from benchmark import records

    report = result.weights
    if report is None:
        return None
    return records.WeightsReport(
        source=report.source,
        sha256=report.sha256,
        scope=report.scope,
        loaded=report.loaded,
        reinitialised=report.reinitialised,
        missing=report.missing,
        unexpected=report.unexpected,
        share_of_backbone=report.share_of_backbone,
    )


def _pretraining(plan: Plan, made: list[Artifact]) -> Pretraining | None:
    from benchmark import records

    if not made:
        return None
    assert plan.start.corpus is not None
    backbone = next(artifact for artifact in made if artifact.manifest.kind == "backbone")
    maps = next((artifact for artifact in made if artifact.manifest.kind == "maps"), None)
    return records.Pretraining(
        corpus=str(backbone.manifest.inputs["corpus"]),
        corpus_fingerprint=str(backbone.manifest.inputs["corpus_fingerprint"]),
        maps=None if maps is None else str(maps.manifest.summary["source"]),
        stages={
            artifact.manifest.kind: records.StageUsed(
                key=artifact.key, inputs=artifact.manifest.inputs, summary=artifact.manifest.summary
            )
            for artifact in made
        },
    )


@contextmanager
def _claimed(folder: Path, cell: Cell) -> Iterator[None]:
    """Keeps a second process from training the same cell in the same folder; a dead owner's claim ends with it."""
    lock = FileLock(folder / "lock", blocking=False)
    try:
        with lock:
            yield
    except Timeout:
        raise UserError(
            f"Another process is training this cell: {cell.title}. Wait for it, or run another one: --seeds N"
        ) from None


def _show_outcome(outcome: dict[str, Any]) -> None:
    failed = [entry for entry in outcome["cells"] if entry["status"] == "failed"]
    for entry in failed:
        console.print(f"[red]failed[/] {entry['dataset']} seed {entry['seed']}: {entry['reason']}")
    if not failed:
        console.print(f"Look at all records: python -m benchmark report --results {outcome['results']}")
