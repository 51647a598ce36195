"""A made results folder on a real procedural dataset: its rows find what they are told to find."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmark"))

from test_records import STAGE, make_record

import datasets_builders
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate
from benchmark.records import CellIdentity, CurvePoint, DatasetUsed, EpochResult, Record, write_record
from datasets_builders import registry
from datasets_builders.storage import content_key

DATASET = "casting_billet_synthetic"
# Mode -> share of the objects that its detector finds.
LADDER = {"scratch": 0.25, "imagenet": 0.4, "industrial": 0.41, "agbp": 0.5, "agssp": 0.62}


def write_board(
    results: Path, dataset: str = DATASET, seeds: int = 3, corpus: str = "corpus_synthetic"
) -> list[Path]:
    """Writes rows of two backbones up the ladder, measured on a dataset that is prepared when it is not there."""
    truth = GroundTruth.from_dataset(datasets_builders.load(dataset, "validation"))
    fingerprint = datasets_builders.fingerprint(dataset)
    paths = []
    for number, backbone in enumerate(("swin:nano", "csp_darknet:n")):
        for mode, share in LADDER.items():
            for seed in range(seeds):
                found = share + 0.04 * number
                paths.append(
                    _write(results, truth, dataset, fingerprint, backbone, mode, found, seed, corpus)
                )
    return paths


def _write(
    results: Path,
    truth: GroundTruth,
    dataset: str,
    fingerprint: str,
    backbone: str,
    mode: str,
    share: float,
    seed: int,
    corpus: str,
) -> Path:
    detections = detections_of(truth, share, seed)
    metrics = evaluate(truth, detections)
    result = EpochResult(epoch=6, metrics=metrics, detections_sha256=detections.sha256())
    name, _, variant = backbone.partition(":")
    curve = [
        CurvePoint(epoch=epoch, losses={"loss": 90 / epoch}, lr=0.001, map50=value, map50_95=other)
        for epoch, value, other in (
            (2, 0.3 * metrics.map50, 0.3 * metrics.map50_95),
            (4, 0.8 * metrics.map50, 0.8 * metrics.map50_95),
            (6, metrics.map50, metrics.map50_95),
        )
    ]
    inputs: dict[str, Any] = {
        "seed": seed,
        "of": [backbone, mode, dataset],
        "upstream": {"backbone": STAGE.key},
    }
    card = registry.card(dataset)
    changes: dict[str, Any] = {
        "key": content_key(inputs),
        "inputs": inputs,
        "cell": CellIdentity(
            backbone=name,
            variant=variant,
            method="-" if mode == "scratch" else "cls",
            mode=mode,
            detector="yolov8",
            dataset=dataset,
            seed=seed,
        ),
        "dataset": DatasetUsed(
            name=dataset,
            fingerprint=fingerprint,
            classes=truth.classes,
            splits={"train": 400, "validation": len(truth.image_ids)},
            procedural=card.origin == "procedural",
        ),
        "last": result,
        "best": result,
        "curve": curve,
        "parameters": 3_300_000 if name == "swin" else 3_000_000,
    }
    made = make_record()
    assert made.pretraining is not None
    changes["pretraining"] = made.pretraining.model_copy(update={"corpus": corpus})
    if mode == "scratch":
        changes |= {"pretraining": None, "weights": None}
    elif mode == "imagenet":
        changes["pretraining"] = None
    record = Record.model_validate(dict(made) | changes)
    return write_record(record, detections, detections, results)


def detections_of(truth: GroundTruth, share: float, seed: int) -> Detections:
    """Finds that share of the objects, roughly placed, and makes half as many errors."""
    rng = np.random.default_rng([seed, int(1000 * share)])
    boxes, scores, labels = [], [], []
    for image in range(len(truth.image_ids)):
        own = np.arange(truth.offsets[image], truth.offsets[image + 1])
        kept = own[rng.random(len(own)) < share]
        sizes = truth.boxes[kept][:, 2:]
        corners = truth.boxes[kept][:, :2] + rng.normal(0, 0.06, (len(kept), 2)) * sizes
        wrong = rng.poisson(0.5)
        place, size = rng.uniform(0, 180, (wrong, 2)), rng.uniform(15, 60, (wrong, 2))
        boxes.append(
            np.concatenate([np.hstack([corners, corners + sizes]), np.hstack([place, place + size])])
        )
        scores.append(np.concatenate([rng.uniform(0.3, 1, len(kept)), rng.uniform(0, 0.7, wrong)]))
        labels.append(np.concatenate([truth.labels[kept], rng.integers(0, len(truth.classes), wrong)]))
    return Detections.from_images(truth.classes, truth.image_ids, boxes, scores, labels)


if __name__ == "__main__":
    write_board(Path(sys.argv[1]))
