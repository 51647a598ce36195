"""Records against real datasets: a procedural one built here, and splits made for the purpose."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import datasets_builders
from benchmark import environment
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate
from benchmark.records import (
    CellIdentity,
    DatasetUsed,
    EpochResult,
    ProtocolUsed,
    Record,
    to_json,
    write_record,
)
from benchmark.verify import Verdict, verify, verify_paths
from datasets_builders.errors import UserError
from datasets_builders.schema import detection_features
from datasets_builders.storage import content_key

PROJECT = Path(environment.__file__).resolve().parents[1]
CLASSES = ["scratch", "inclusion"]
NAME = "neu_det"
FINGERPRINT = "d" * 64


def split(shift: float = 0.0) -> datasets.Dataset:
    boxes = [[[0, 0, 10 + shift, 10], [20, 20, 9, 9]], [], [[1, 1, 8, 8]]]
    labels: list[list[int]] = [[0, 1], [], [1]]
    return datasets.Dataset.from_list(
        [
            {
                "image": {"bytes": b"never decoded", "path": None},
                "image_id": name,
                "width": 64,
                "height": 64,
                "objects": {"id": list(range(len(b))), "bbox": b, "area": [1.0] * len(b), "category": k},
                "mask": None,
            }
            for name, b, k in zip(["a", "b", "c"], boxes, labels, strict=True)
        ],
        features=detection_features(CLASSES),
    )


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for a prepared dataset; its entries can be changed."""
    state: dict[str, Any] = {"fingerprint": FINGERPRINT, "validation": split()}
    monkeypatch.setattr(datasets_builders, "fingerprint", lambda name: state["fingerprint"])
    monkeypatch.setattr(datasets_builders, "load", lambda name, part: state[part])
    return state


def answers(truth: GroundTruth, noise: float) -> Detections:
    rng = np.random.default_rng(0)
    corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
    corners = corners + rng.uniform(0, noise, (len(corners), 1)).astype(np.float32)
    ends = truth.offsets[1:-1]
    return Detections.from_images(
        truth.classes,
        truth.image_ids,
        np.split(corners, ends),
        np.split(rng.random(len(corners)), ends),
        np.split(truth.labels, ends),
    )


def record_of(
    truth: GroundTruth, last: Detections, best: Detections, name: str = NAME, fingerprint: str = FINGERPRINT
) -> Record:
    def result(epoch: int, detections: Detections) -> EpochResult:
        metrics = evaluate(truth, detections)
        return EpochResult(epoch=epoch, metrics=metrics, detections_sha256=detections.sha256())

    inputs = {"dataset_fingerprint": fingerprint, "seed": 0}
    return Record(
        key=content_key(inputs),
        inputs=inputs,
        cell=CellIdentity(
            backbone="swin",
            variant="nano",
            method="-",
            mode="scratch",
            detector="yolov8",
            dataset=name,
            seed=0,
        ),
        protocol=ProtocolUsed(name="mini", version=1, sha256="a" * 64, settings={}),
        dataset=DatasetUsed(
            name=name,
            fingerprint=fingerprint,
            classes=truth.classes,
            splits={"train": 10, "validation": len(truth.image_ids)},
            procedural=True,
        ),
        last=result(5, last),
        best=result(3, best),
        curve=(),
        weights=None,
        parameters=1,
        cost={},
        resumes=0,
        environment=environment.collect(),
        created="2026-01-01T00:00:00Z",  # type: ignore[arg-type]
    )


@pytest.fixture
def path(tmp_path: Path, dataset: dict[str, Any]) -> Path:
    """A true record."""
    truth = GroundTruth.from_dataset(dataset["validation"])
    last, best = answers(truth, 3.0), answers(truth, 0.5)
    return write_record(record_of(truth, last, best), last, best, tmp_path)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_true_record_is_equal(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (path, path.parent):
        found = verify(place)
        assert (found.verdict, found.reasons) == (Verdict.EQUAL, ())
    assert verify_paths([path]) == 0
    assert capsys.readouterr().out == f"equal: {path}\n"


@pytest.mark.parametrize(
    ("where", "field"),
    [
        (("last", "metrics"), "map50_95"),
        (("best", "metrics"), "recall"),
        (("best", "metrics", "per_class", 0), "ap50_95"),
        (("last", "metrics", "per_class", 1), "recall"),
    ],
)
def test_edited_number_is_found(path: Path, where: tuple[Any, ...], field: str) -> None:
    def change(values: Any) -> None:
        for step in where:
            values = values[step]
        values[field] = values[field] - 1e-6 if values[field] > 1 else values[field] + 1e-6

    edit(path, change)
    found = verify(path)
    assert found.verdict is Verdict.DIFFERENT
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith(where[0])
    assert field in found.reasons[0]


def test_every_difference_is_listed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(values: dict[str, Any]) -> None:
        values["last"]["metrics"].update(objects=4, detections=9)
        values["best"]["metrics"]["per_class"][0]["ap50"] = None

    edit(path, change)
    assert verify_paths([path]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"different: {path}"
    assert lines[1:3] == [
        "  last: detections is 9 in the record and 3 from its detections",
        "  last: objects is 4 in the record and 3 from its detections",
    ]
    assert lines[3].startswith("  best: scratch ap50 is None in the record and ")
    assert len(lines) == 4


def test_differences_under_the_tolerance_are_equal(path: Path) -> None:
    edit(
        path,
        lambda values: values["last"]["metrics"].update(recall=values["last"]["metrics"]["recall"] + 1e-12),
    )
    assert verify(path).verdict is Verdict.EQUAL


def test_exchanged_detections_are_found(path: Path) -> None:
    best = path.parent / "best.parquet"
    (path.parent / "last.parquet").write_bytes(best.read_bytes())
    found = verify(path)
    assert found.verdict is Verdict.DIFFERENT
    assert found.reasons == ("last: its file does not hold the detections that the record names",)


def test_detections_of_other_images_are_found(path: Path, dataset: dict[str, Any]) -> None:
    other = dataset["validation"].map(lambda row: {"image_id": row["image_id"] + "x"})
    dataset["validation"] = other
    found = verify(path)
    assert found.verdict is Verdict.DIFFERENT
    assert "3 missing, 3 foreign" in found.reasons[0]


def test_labels_that_changed_under_one_fingerprint_are_found(path: Path, dataset: dict[str, Any]) -> None:
    dataset["validation"] = split(shift=9.0)
    assert verify(path).verdict is Verdict.DIFFERENT


def test_another_version_of_the_dataset_cannot_be_verified(path: Path, dataset: dict[str, Any]) -> None:
    dataset["fingerprint"] = "e" * 64
    found = verify(path)
    assert found.verdict is Verdict.IMPOSSIBLE
    assert "dataset differs" in found.reasons[0]
    assert verify_paths([path]) == 2


def test_absent_dataset_cannot_be_verified(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise UserError(
            f"{name} is not ready on this machine.\n then: python -m datasets_builders prepare {name}"
        )

    monkeypatch.setattr(datasets_builders, "fingerprint", absent)
    found = verify(path)
    assert found.verdict is Verdict.IMPOSSIBLE
    assert "prepare neu_det" in found.reasons[0]


@pytest.mark.parametrize("name", ["record.json", "last.parquet", "best.parquet"])
@pytest.mark.parametrize("how", ["missing", "cut", "junk"])
def test_damaged_files_cannot_be_verified(path: Path, name: str, how: str) -> None:
    file = path.parent / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if how == "cut" else b"junk")
    found = verify(path)
    assert found.verdict is Verdict.IMPOSSIBLE
    assert str(file) in found.reasons[0]


def test_a_difference_outweighs_what_cannot_be_verified(path: Path, tmp_path: Path) -> None:
    edit(path, lambda values: values["last"]["metrics"].update(detections=9))
    assert verify_paths([tmp_path / "absent", path]) == 1
    assert verify_paths([tmp_path / "absent"]) == 2


def test_whole_results_folder(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "mini-v1" / "neu_det" / "broken-0"
    broken.mkdir(parents=True)
    (broken / "record.json").write_text("{")
    assert verify_paths([tmp_path]) == 2
    out = capsys.readouterr().out
    assert f"equal: {path}\n" in out
    assert f"cannot verify: {broken / 'record.json'}\n" in out


@pytest.mark.slow
def test_against_a_generated_dataset_from_the_command_line(tmp_path: Path, python: str) -> None:
    name = "casting_billet_synthetic"
    truth = GroundTruth.from_dataset(datasets_builders.load(name, "validation"))
    assert truth.classes == datasets_builders.card(name).classes
    last, best = answers(truth, 6.0), answers(truth, 1.0)
    record = record_of(truth, last, best, name, datasets_builders.fingerprint(name))
    path = write_record(record, last, best, tmp_path)
    assert record.best.metrics.map50 > record.last.metrics.map50 > 0

    def command() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "benchmark", "verify", str(path)], cwd=PROJECT, capture_output=True, text=True
        )

    done = command()
    assert (done.returncode, done.stdout) == (0, f"equal: {path}\n"), done.stderr
    forged = record.model_dump(mode="json")
    forged["last"]["metrics"]["map50"] = 1.0
    path.write_text(json.dumps(forged))
    done = command()
    assert done.returncode == 1
    assert "last: map50 is 1.0 in the record" in done.stdout
    path.write_text(to_json(record)[:-10])
    assert command().returncode == 2
