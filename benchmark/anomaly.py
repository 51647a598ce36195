"""The anomaly benchmark: how well a detector's maps find defects, and what they cost (paper Table 4 and Fig. 7)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agssp import normals as choosing
from agssp.display import console
from agssp.map_inputs import Images, MapInput, open_images
from agssp.map_sources import MapSource, SourceOptions, open_source
from baselines.training.resources import PeakMemory, resolve_device
from benchmark import environment
from benchmark.anomaly_data import SPLIT, read_truths
from benchmark.anomaly_metrics import AnomalyMetrics, check_measurable, evaluate
from benchmark.anomaly_outputs import Outputs
from benchmark.anomaly_records import AnomalyCell, AnomalyRecord, find_record, write_record
from benchmark.anomaly_tables import show_plan, show_result
from benchmark.record_schema import DatasetUsed, StageCost
from benchmark.run import check_writable
from datasets_builders import registry
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

VERSION = 1
"""Raised when the same inputs give other numbers."""
EVALUATION_SIZE = 240
"""S: every detector's maps are compared with the masks at S x S pixels, so that all answer for the same pixels."""
NEED_ENCODER = ("kead", "winclip")


@dataclass(frozen=True)
class Scores:
    """What scoring a split gave.

    Attributes:
        outputs: Maps and image scores.
        images_per_second: Of scoring alone.
        fit: Cost of preparing the categories.
        score: Cost of the images, with reading and decoding.
    """

    outputs: Outputs
    images_per_second: float
    fit: StageCost
    score: StageCost


def run_anomaly(
    *,
    detector: str,
    encoder: str,
    dataset: str,
    shots: int,
    seeds: Sequence[int],
    normals: str,
    device: str,
    results: Path,
    options: SourceOptions,
) -> dict[str, Any]:
    """Scores a dataset's validation split with each seed and records it; finished records are not made again.

    Args:
        detector: A source of maps: `kead`, `winclip`, `memory`, ...; see `agssp.map_sources`.
        encoder: What follows the colon in the source's name; may be empty.
        dataset: A detection dataset.
        shots: Normal images of each category.
        seeds: Of their choice.
        normals: `labelled`, `auto`, or a file of ids of training images.
        device: `auto`, `cpu` or `cuda`.
        results: The results folder.
        options: Of the source.

    Returns:
        What was done, for `--json`.

    Raises:
        UserError: Something asked for cannot be had.
    """
    if detector in NEED_ENCODER and not encoder:
        raise UserError(
            f"--detector {detector} needs an encoder: --encoder tiny, base, large, huge or MODEL/TAG."
        )
    spec = f"{detector}:{encoder}" if encoder else detector
    registry.card(dataset)
    rule = choosing.Rule(normals)
    device = resolve_device(device)
    images, train = open_images(dataset, SPLIT), open_images(dataset, "train")
    truths = read_truths(images)
    check_measurable(truths)
    check_writable(results, "results folder", "--results DIR")
    source = open_source(spec, seed=seeds[0], device=device, options=options)
    source.check(images)
    shots = shots if source.needs_normals else 0
    if shots == 0 and detector != "random":
        seeds = seeds[:1]  # nothing is chosen, so a seed changes nothing
    show_plan(source.name, dataset, shots, seeds, device, results)
    rows = []
    for seed in seeds:
        if detector == "random" and seed != seeds[0]:
            source = open_source(spec, seed=seed, device=device, options=options)
        cell = AnomalyCell(
            detector=detector,
            encoder=encoder,
            settings=dict(options.settings),
            dataset=dataset,
            shots=shots,
            seed=seed,
        )
        inputs = _inputs(cell, source, images, rule)
        found = find_record(results, content_key(inputs))
        status = "already recorded" if found else "recorded"
        if found:
            path, record = found
        else:
            chosen = _choose(rule, shots, seed, train, source)
            scores = _score(source, images, train, chosen)
            metrics = evaluate(scores.outputs.maps, scores.outputs.scores, truths, EVALUATION_SIZE)
            record = _record(cell, inputs, train, images, chosen, source, scores, metrics, device)
            path = write_record(record, scores.outputs, results)
        show_result(record, path, status)
        rows.append({"seed": seed, "status": status, "record": str(path), **_summary(record)})
    return {"detector": source.name, "dataset": dataset, "shots": shots, "records": rows}


def _inputs(cell: AnomalyCell, source: MapSource, images: Images, rule: choosing.Rule) -> dict[str, Any]:
    """Returns everything that changes the numbers. Which images a rule chooses follows from the rest."""
    inputs: dict[str, Any] = {
        "stage": "anomaly",
        "version": VERSION,
        "source": source.identity(),
        "dataset": images.identity(),
        "evaluation_size": EVALUATION_SIZE,
        "shots": cell.shots,
    }
    if cell.shots:
        inputs |= {"seed": cell.seed, "normals": rule.identity()}
    return inputs


def _choose(
    rule: choosing.Rule, shots: int, seed: int, train: Images, source: MapSource
) -> dict[str, list[str]]:
    if not shots:
        return {}
    if rule.name == "labelled" and not train.labelled_normals():
        raise UserError(
            f"{train.name} has no training image without defects, so normal ones cannot be drawn by label. Give "
            "--normals auto (the detector chooses those that look least anomalous), --normals FILE (ids of training "
            "images, one a line), or --shots 0."
        )
    return choosing.choose(rule, shots, seed, train, source, lambda rows: _decode(source, train, rows))


def _decode(source: MapSource, images: Images, rows: Sequence[int]) -> list[MapInput]:
    """Decodes images in the order asked for."""
    found = (images.read([row])[0] for row in rows)
    return [encoded.decode(images.mask(encoded) if source.needs_masks else None) for encoded in found]


def _score(source: MapSource, images: Images, train: Images, chosen: dict[str, list[str]]) -> Scores:
    """Prepares every category and scores every image, one batch after the other."""
    places = {image_id: row for row, image_id in enumerate(train.ids)}
    with PeakMemory() as memory, _clock() as fitting:
        models = {
            name: source.fit(
                name,
                [one.image for one in _decode(source, train, [places[i] for i in chosen.get(name, [])])],
            )
            for name in dict.fromkeys(images.categories)
        }
    fit = StageCost(
        seconds=fitting(), peak_ram_mib=memory.peak.ram_mib, peak_gpu_mib=_gpu(source, memory.peak.gpu_mib)
    )
    scores = np.empty(len(images.ids), np.float32)
    maps: list[np.ndarray] = [np.empty(0)] * len(images.ids)
    busy = 0.0
    with PeakMemory() as memory, _clock() as scoring, _progress(source.name, len(images.ids)) as advance:
        for name, model in models.items():
            rows = [row for row, category in enumerate(images.categories) if category == name]
            for start in range(0, len(rows), source.batch_size):
                part = rows[start : start + source.batch_size]
                batch = _decode(source, images, part)
                began = time.perf_counter()
                found = source.score(batch, model)
                busy += time.perf_counter() - began
                scores[part] = found.image_scores
                for row, values in zip(part, found.maps, strict=True):
                    maps[row] = values
                advance(len(part))
    return Scores(
        Outputs(tuple(images.ids), scores, np.stack(maps).astype(np.float32)),
        len(images.ids) / busy,
        fit,
        StageCost(
            seconds=scoring(),
            peak_ram_mib=memory.peak.ram_mib,
            peak_gpu_mib=_gpu(source, memory.peak.gpu_mib),
        ),
    )


def _gpu(source: MapSource, mib: float | None) -> float | None:
    return None if source.device == "cpu" else mib


@contextmanager
def _clock() -> Iterator[Callable[[], float]]:
    """Gives a function that returns the seconds that the context was open, once it is closed."""
    began, seconds = time.perf_counter(), [0.0]
    yield lambda: seconds[0]
    seconds[0] = time.perf_counter() - began


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


def _record(
    cell: AnomalyCell,
    inputs: dict[str, Any],
    train: Images,
    images: Images,
    chosen: dict[str, list[str]],
    source: MapSource,
    scores: Scores,
    metrics: AnomalyMetrics,
    device: str,
) -> AnomalyRecord:
    card = registry.card(cell.dataset)
    return AnomalyRecord(
        key=content_key(inputs),
        inputs=inputs,
        cell=cell,
        dataset=DatasetUsed(
            name=cell.dataset,
            fingerprint=images.identity()["fingerprint"],
            classes=card.classes,
            splits={"train": len(train.ids), SPLIT: len(images.ids)},
            procedural=registry.card(card.dataset).origin == "procedural",
        ),
        normals={name: tuple(ids) for name, ids in chosen.items()},
        evaluation_size=EVALUATION_SIZE,
        metrics=metrics,
        outputs_sha256=scores.outputs.sha256(),
        images_per_second=scores.images_per_second,
        batch_size=source.batch_size,
        cost={"fit": scores.fit, "score": scores.score},
        environment=environment.collect(device),
        created=datetime.now(UTC),
    )


def _summary(record: AnomalyRecord) -> dict[str, Any]:
    metrics = record.metrics.model_dump(mode="json")
    return {
        "metrics": metrics,
        "images_per_second": record.images_per_second,
        "peak_ram_mib": record.cost["score"].peak_ram_mib,
        "peak_gpu_mib": record.cost["score"].peak_gpu_mib,
    }
