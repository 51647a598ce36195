"""A small submission that is valid, made without training: real weights, made-up answers, their true metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datasets_builders
from benchmark import environment
from benchmark import protocol as protocols
from benchmark.cells import Cell, cell_identity
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate
from benchmark.modes import Start
from benchmark.record_schema import (
    CellIdentity,
    CurvePoint,
    DatasetUsed,
    EpochResult,
    ProtocolUsed,
    Record,
    StageCost,
    WeightsReport,
    to_json,
)
from benchmark.records import write_record
from benchmark.submit import card
from benchmark.submit.loading import WeightsCheck
from benchmark.submit.prepare import Cells, prepare, state
from benchmark.submit.schema import (
    CARD_FILE,
    RECORDS_FOLDER,
    SUBMISSION_FILE,
    Submission,
    SubmittedFile,
    read_submission,
)
from datasets_builders import registry
from datasets_builders.storage import content_key, file_sha256

DATASET, PROTOCOL, BACKBONE = "casting_billet_synthetic", "mock-v1", "csp_darknet:n"
FINGERPRINT = "d" * 64
ENVIRONMENT = environment.collect()
SAID = {
    "name": "Odd idea",
    "backbone": BACKBONE,
    "method": "autoencoder",
    "method_text": "An autoencoder, trained on nothing in particular.",
    "licence": "apache-2.0",
    "pretrained_on": ("corpus_synthetic", DATASET),
}


def make_split(images: int, prefix: str) -> Any:
    """Labelled images that nobody decodes, with the classes of the dataset."""
    import datasets

    from datasets_builders.schema import detection_features

    classes = registry.card(DATASET).classes
    rng = np.random.default_rng(images)
    rows = []
    for number in range(images):
        corner = rng.integers(0, 30, (2, 2))
        boxes = [[float(x), float(y), 20.0, 12.0] for x, y in corner]
        rows.append(
            {
                "image": {"bytes": b"never decoded", "path": None},
                "image_id": f"{prefix}{number:02d}",
                "width": 64,
                "height": 64,
                "objects": {
                    "id": [0, 1],
                    "bbox": boxes,
                    "area": [240.0, 240.0],
                    "category": [number % len(classes), (number + 1) % len(classes)],
                },
                "mask": None,
            }
        )
    return datasets.Dataset.from_list(rows, features=detection_features(list(classes)))


SPLITS = {"train": make_split(40, "t"), "validation": make_split(12, "v")}
TRUTH = GroundTruth.from_dataset(SPLITS["validation"])


def answers(seed: int, names: tuple[str, ...] = TRUTH.image_ids) -> Detections:
    """Answers that are a little off."""
    rng = np.random.default_rng(seed)
    corners = np.concatenate([TRUTH.boxes[:, :2], TRUTH.boxes[:, :2] + TRUTH.boxes[:, 2:]], axis=1)
    corners = corners + rng.uniform(0, 6, (len(corners), 1)).astype(np.float32)
    ends = TRUTH.offsets[1:-1]
    return Detections.from_images(
        TRUTH.classes,
        names,
        np.split(corners, ends),
        np.split(rng.random(len(corners)), ends),
        np.split(TRUTH.labels, ends),
    )


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the prepared dataset."""
    monkeypatch.setattr(datasets_builders, "fingerprint", lambda name: FINGERPRINT)
    monkeypatch.setattr(datasets_builders, "load", lambda name, part: SPLITS[part])
    monkeypatch.setattr(WeightsCheck, "load", _load_once)


_LOADED: dict[tuple[Any, ...], Any] = {}
_LOAD = WeightsCheck.load


def _load_once(check: WeightsCheck, *place: Any) -> Any:
    """Loads equal weights into equal models once in a session."""
    key = (check.local.sha256, check.scope, *place)
    if key not in _LOADED:
        _LOADED[key] = _LOAD(check, *place)
    return _LOADED[key]


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the backbone, never trained."""
    return make_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", seed=0)


def make_weights(path: Path, seed: int) -> Path:
    import torch

    from baselines import backbones, openmmlab, weights

    openmmlab.activate()
    from baselines.pretraining import build_backbone

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_backbone(backbones.get("csp_darknet", "n"))
    tensors = {f"backbone.{name}": tensor for name, tensor in module.state_dict().items()}
    weights.save(path, tensors, {"scope": "backbone", "backbone": BACKBONE})
    return path


def make_record(weights: Path, seed: int, detections: Detections, **changes: Any) -> Record:
    """The record of a finetuning that never was."""
    from benchmark.finetune import STAGE_VERSION

    check = WeightsCheck(weights)
    report, parameters = _load_once(check, BACKBONE, "yolov8", PROTOCOL, len(TRUTH.classes))
    protocol = protocols.load(PROTOCOL)
    cell = Cell("csp_darknet", "n", SAID["method"], "custom", "yolov8", DATASET, seed)
    inputs = cell_identity(
        cell,
        protocol,
        Start("backbone", check.local),
        dataset_fingerprint=FINGERPRINT,
        stage_version=STAGE_VERSION,
    )
    found = EpochResult(epoch=3, metrics=evaluate(TRUTH, detections), detections_sha256=detections.sha256())
    values = {
        "key": content_key(inputs),
        "inputs": inputs,
        "cell": CellIdentity(**vars(cell)),
        "protocol": ProtocolUsed(
            name=protocol.name,
            version=protocol.version,
            sha256=protocol.sha256("yolov8"),
            settings=protocol.recipe("csp_darknet", "yolov8").model_dump(mode="json"),
        ),
        "dataset": DatasetUsed(
            name=DATASET,
            fingerprint=FINGERPRINT,
            classes=TRUTH.classes,
            splits={name: len(split) for name, split in SPLITS.items()},
            procedural=True,
        ),
        "last": found,
        "best": found,
        "curve": tuple(
            CurvePoint(
                epoch=epoch,
                losses={"loss": 1.0 / epoch},
                lr=0.001,
                map50=found.metrics.map50 if epoch == 3 else None,
                map50_95=found.metrics.map50_95 if epoch == 3 else None,
            )
            for epoch in (1, 2, 3)
        ),
        "weights": WeightsReport.of(report),
        "parameters": parameters,
        "cost": {"finetune": StageCost(seconds=1.0, peak_ram_mib=1.0, peak_gpu_mib=None)},
        "resumes": 0,
        "environment": ENVIRONMENT,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Record(**values | changes)


def make_submission(folder: Path, weights: Path, seeds: int = 2, first: int = 0, **said: Any) -> Path:
    """Prepares a submission from finished records; its answers are those of seeds `first`, `first + 1`, ..."""
    results = folder.with_name(f"{folder.name}-results")
    for seed in range(seeds):
        detections = answers(first + seed)
        write_record(make_record(weights, seed, detections), detections, detections, results)
    out, report = prepare(str(weights), state(**SAID | said), Cells(), results, folder)
    assert report.valid
    return out


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory, weights_file: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGSSP_BENCH_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(datasets_builders, "fingerprint", lambda name: FINGERPRINT)
        patch.setattr(datasets_builders, "load", lambda name, part: SPLITS[part])
        return make_submission(tmp_path_factory.mktemp("made") / "odd-idea", weights_file)


@pytest.fixture
def submission(_made: Path, tmp_path: Path, dataset: None) -> Path:
    """A valid submission of two seeds, to be spoilt."""
    return Path(shutil.copytree(_made, tmp_path / "odd-idea"))


def seal(folder: Path, *, with_card: bool = True, **changes: Any) -> None:
    """Does what an attacker would: writes statement and card anew, so that they fit the files."""
    inside = folder / RECORDS_FOLDER
    files = {
        path.relative_to(inside).as_posix(): SubmittedFile(
            sha256=file_sha256(path), bytes=path.stat().st_size
        )
        for path in sorted(inside.rglob("*"))
        if path.is_file()
    }
    old = read_submission(folder)
    new = Submission.model_validate(old.model_dump() | {"files": files} | changes)
    (folder / SUBMISSION_FILE).write_text(to_json(new), encoding="utf-8")
    if not with_card:
        return
    records = [
        Record.model_validate_json(path.read_bytes())
        for path in sorted(inside.rglob("record.json"))
        if _is_record(path)
    ]
    (folder / CARD_FILE).write_text(card.render(new, records), encoding="utf-8")


def _is_record(path: Path) -> bool:
    try:
        Record.model_validate_json(path.read_bytes())
    except ValueError:
        return False
    return True


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def record_files(submission: Path) -> Iterator[list[Path]]:
    """The records of the submission, by seed."""
    return sorted(submission.rglob("record.json"))  # type: ignore[return-value]
