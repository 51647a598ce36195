"""One cell from its dataset to its record; `run` and every engine of `matrix` come here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.markup import escape

import datasets_builders
from agssp.display import console, duration, show_stage, training_progress
from agssp.stages import weights_of
from baselines import backbones
from benchmark.cells import Cell, cell_identity, cell_key
from benchmark.modes import Start
from benchmark.protocol import Protocol
from datasets_builders import registry, storage

if TYPE_CHECKING:
    from baselines.artifacts import Artifact
    from benchmark.finetune import FinetuneResult, Outcome
    from benchmark.records import Pretraining, Record, StoredRecord


@dataclass(frozen=True)
class Track:
    """What the cells of one row have in common.

    Attributes:
        protocol: The rule of finetuning.
        start: What they begin with.
        device: `cpu` or `cuda`.
        results: Folder of records.
    """

    protocol: Protocol
    start: Start
    device: str
    results: Path


def run_cell(track: Track, cell: Cell) -> dict[str, Any]:
    """Brings one cell to its record, with the stages before it; tells on standard error what it does.

    Returns:
        `status` (recorded, already recorded or failed) and, where it failed, the `reason`; else the record's file and
        key and its metrics.

    Raises:
        UserError: Something that the cell needs cannot be had.
    """
    from baselines.training.hooks import TrainingDivergedError
    from baselines.training.resources import default_workers
    from benchmark import finetune, records

    with console.status(f"  opening {cell.dataset} (generated on first use where it is procedural)"):
        train = datasets_builders.load(cell.dataset, "train")
    validation = datasets_builders.load(cell.dataset, "validation")
    inputs = cell_identity(
        cell,
        track.protocol,
        track.start,
        dataset_fingerprint=datasets_builders.fingerprint(cell.dataset),
        stage_version=finetune.STAGE_VERSION,
    )
    key = cell_key(inputs)
    if found := records.find_record(track.results, key):
        return _found(found)
    folder = storage.home() / "runs" / key
    folder.mkdir(parents=True, exist_ok=True)
    try:
        made = track.start.obtain(show_stage, console.print)
        initial = weights_of(made[-1]) if made else track.start.weights
        with _claimed(folder), training_progress(f"  {cell.dataset}") as feed:
            if found := records.find_record(track.results, key):  # by the process that was waited for
                return _found(found)
            result = finetune.finetune(
                backbone=backbones.get(cell.backbone, cell.variant),
                detector=cell.detector,
                recipe=track.protocol.recipe(cell.backbone, cell.detector),
                train=train,
                validation=validation,
                seed=cell.seed,
                folder=folder,
                workers=default_workers(track.device),
                on_event=feed,
                weights=initial,
                scope=track.start.scope or "backbone",
            )
            splits = {"train": len(train), "validation": len(validation)}
            record = _record(track, cell, key, inputs, result, splits, made)
            path = records.write_record(record, result.last.detections, result.best.detections, track.results)
            finetune.finish(folder, result)
    except TrainingDivergedError as error:
        console.print(f"  [red]failed[/]: {escape(str(error))}")
        return {"status": "failed", "reason": str(error)}
    for line in result.weights.describe() if result.weights else ():
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
    metrics = record.last.metrics
    resumed = f", resumed {record.resumes}x" if record.resumes else ""
    console.print(
        f"  mAP@.5 [bold]{metrics.map50:.1f}[/] (best {record.best.metrics.map50:.1f}),"
        f" mAP@.5:.95 {metrics.map50_95:.1f}, {duration(result.seconds)}{resumed}"
    )
    console.print(f"  record:  {path}", soft_wrap=True, markup=False)
    console.print(f"  weights: {result.best.weights}", soft_wrap=True, markup=False)
    return _result("recorded", path, record)


def _found(found: StoredRecord) -> dict[str, Any]:
    console.print(f"  finished before: {found.path}", soft_wrap=True, markup=False)
    return _result("already recorded", found.path, found.record)


def _result(status: str, path: Path, record: Record) -> dict[str, Any]:
    return {
        "status": status,
        "record": str(path),
        "key": record.key,
        "last": {"map50": record.last.metrics.map50, "map50_95": record.last.metrics.map50_95},
        "best": {"map50": record.best.metrics.map50, "map50_95": record.best.metrics.map50_95},
    }


def _record(
    track: Track,
    cell: Cell,
    key: str,
    inputs: dict[str, Any],
    result: FinetuneResult,
    splits: dict[str, int],
    made: list[Artifact],
) -> Record:
    from benchmark import environment, records

    card = registry.card(cell.dataset)
    protocol = track.protocol

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
        weights=records.WeightsReport.of(result.weights) if result.weights else None,
        pretraining=_pretraining(track, made),
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
        precision=result.precision,
        environment=environment.collect(track.device),
        created=datetime.now(UTC),
    )


def _pretraining(track: Track, made: list[Artifact]) -> Pretraining | None:
    from benchmark import records

    if not made:
        return None
    assert track.start.corpus is not None
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
def _claimed(folder: Path) -> Iterator[None]:
    """Keeps two processes from training one cell at once: the second waits; a dead owner's claim ends with it."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        console.print("  waiting for another process that is training this cell")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
