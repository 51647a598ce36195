from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmark import environment
from benchmark import records as module
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate
from benchmark.records import (
    CellIdentity,
    CurvePoint,
    DatasetUsed,
    EpochResult,
    Pretraining,
    ProtocolUsed,
    Quarantined,
    Record,
    StageCost,
    StageUsed,
    StoredRecord,
    Trust,
    WeightsReport,
    find_record,
    iter_records,
    read_record,
    to_json,
    write_record,
)
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

CLASSES = ("scratch", "inclusion")
IDS = ["a", "b", "c"]
TRUTH = GroundTruth.from_images(
    CLASSES,
    IDS,
    np.full((3, 2), 64),
    [[[0, 0, 10, 10], [20, 20, 9, 9]], [], [[1, 1, 8, 8]]],
    [[0, 1], [], [1]],
)


def answers(noise: float, seed: int = 0) -> Detections:
    """Answers that get worse with the noise (pixels)."""
    rng = np.random.default_rng(seed)
    boxes = [
        np.array([[0, 0, 10, 10], [20, 20, 29, 29]]) + rng.uniform(0, noise, (2, 1)),
        np.zeros((0, 4)),
        np.array([[1, 1, 9, 9]]) + noise,
    ]
    return Detections.from_images(CLASSES, IDS, boxes, [[0.9, 0.8], [], [0.7]], [[0, 1], [], [1]])


GOOD, POOR = answers(0.3), answers(3.0)
ENVIRONMENT = environment.collect()
STAGE_INPUTS = {"stage": "backbone", "seed": 0}
STAGE = StageUsed(key=content_key(STAGE_INPUTS), inputs=STAGE_INPUTS, summary={"epochs": 6})


def result(epoch: int, detections: Detections) -> EpochResult:
    metrics = evaluate(TRUTH, detections)
    return EpochResult(epoch=epoch, metrics=metrics, detections_sha256=detections.sha256())


def make_record(last: Detections = POOR, best: Detections = GOOD, seed: int = 0, **changes: Any) -> Record:
    """A cell of four epochs, best at the second; the detections decide its metrics."""
    inputs = {
        "stage": "finetune",
        "stage_version": 1,
        "recipe": {"lr": 0.0025},
        "seed": seed,
        "upstream": {"backbone": STAGE.key},
    }
    best_epoch = 4 if best is last else 2
    results = {4: result(4, last), best_epoch: result(best_epoch, best)}
    curve = [
        CurvePoint(
            epoch=epoch,
            losses={"loss": 1.5 / epoch, "loss_cls": 1 / 3},
            lr=0.01,
            map50=results[epoch].metrics.map50 if epoch in results else None,
            map50_95=results[epoch].metrics.map50_95 if epoch in results else None,
        )
        for epoch in range(1, 5)
    ]
    values: dict[str, Any] = {
        "key": content_key(inputs),
        "inputs": inputs,
        "cell": CellIdentity(
            backbone="swin",
            variant="nano",
            method="simmim",
            mode="agbp",
            detector="yolov8",
            dataset="neu_det/mini50",
            seed=seed,
        ),
        "protocol": ProtocolUsed(
            name="mini", version=1, sha256="a" * 64, settings={"epochs": 4, "hsv": [0.1, 0.2]}
        ),
        "dataset": DatasetUsed(
            name="neu_det/mini50",
            fingerprint="b" * 64,
            classes=CLASSES,
            splits={"train": 50, "validation": 3},
            procedural=False,
        ),
        "last": results[4],
        "best": results[best_epoch],
        "curve": curve,
        "weights": WeightsReport(
            source="weights.safetensors",
            sha256="c" * 64,
            scope="backbone",
            loaded=300,
            reinitialised=("head.cls.0.weight",),
            missing=(),
            unexpected=("old_head.weight",),
            share_of_backbone=1.0,
        ),
        "pretraining": Pretraining(
            corpus="corpus_x_sdd_gc10",
            corpus_fingerprint="e" * 64,
            maps="kead:tiny",
            stages={"backbone": STAGE},
        ),
        "parameters": 11_100_000,
        "cost": {"finetune": StageCost(seconds=61.5, peak_ram_mib=900.0, peak_gpu_mib=None)},
        "resumes": 1,
        "environment": ENVIRONMENT,
        "created": "2026-03-01T12:00:00+01:00",
    }
    return Record.model_validate(values | changes)


def test_rows_hold_what_differs_in_the_seed_alone() -> None:
    assert make_record().row_key == make_record(seed=1).row_key
    assert make_record().row_key != content_key(make_record().inputs)


def test_a_pretraining_that_is_not_the_one_of_inputs_is_refused() -> None:
    other = StageUsed(key=content_key({"stage": "x"}), inputs={"stage": "x"}, summary={})
    used = make_record().pretraining
    assert used is not None
    with pytest.raises(ValidationError, match="pretraining is not the one of inputs"):
        make_record(pretraining=used.model_copy(update={"stages": {"backbone": other}}))
    with pytest.raises(ValidationError, match="key is not the hash"):
        StageUsed(key="0" * 64, inputs={"stage": "x"}, summary={})


def test_round_trip(tmp_path: Path) -> None:
    record = make_record()
    path = write_record(record, POOR, GOOD, tmp_path)
    assert path == tmp_path / "mini-v1" / "neu_det--mini50" / (
        f"swin-nano_simmim_agbp_yolov8_seed0-{record.key[:12]}/record.json"
    )
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "best.parquet",
        "last.parquet",
        "record.json",
    ]
    assert read_record(path) == read_record(path.parent) == record
    assert Detections.load(path.parent / record.detections_files[0]).sha256() == POOR.sha256()
    assert Detections.load(path.parent / record.detections_files[1]).sha256() == GOOD.sha256()
    assert find_record(tmp_path, record.key) == StoredRecord(path, record)
    assert list(iter_records(tmp_path)) == [StoredRecord(path, record)]


def test_last_and_best_of_one_epoch_share_a_file(tmp_path: Path) -> None:
    record = make_record(GOOD, GOOD)
    path = write_record(record, GOOD, GOOD, tmp_path)
    assert record.detections_files == ("last.parquet", "last.parquet")
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.parquet", "record.json"]


def test_file_is_for_people_too() -> None:
    text = to_json(make_record())
    assert max(map(len, text.splitlines())) < 160
    assert json.loads(text)["created"] == "2026-03-01T11:00:00Z"
    names = list(json.loads(text))
    assert names == sorted(names)
    assert '  "dataset": {\n    "classes": ["scratch", "inclusion"],\n' in text
    assert to_json(make_record()) == text


def test_metrics_come_back_to_the_last_bit(tmp_path: Path) -> None:
    path = write_record(make_record(), POOR, GOOD, tmp_path)
    assert read_record(path).best.metrics == evaluate(TRUTH, GOOD)


def test_a_record_is_never_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = make_record()
    path = write_record(first, POOR, GOOD, tmp_path)
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with caplog.at_level(logging.WARNING):
        assert write_record(make_record(created="2027-01-01T00:00:00Z"), POOR, GOOD, tmp_path) == path
        assert not caplog.records
        other = answers(2.0)
        assert write_record(make_record(last=other), other, GOOD, tmp_path) == path
        assert "other numbers" in caplog.text
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    assert len(list(path.parent.parent.iterdir())) == 1


def test_detections_must_be_those_of_the_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="epoch 4 are not the ones"):
        write_record(make_record(), GOOD, GOOD, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_in_its_place_is_named(tmp_path: Path) -> None:
    record = make_record()
    path = write_record(record, POOR, GOOD, tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"record\.json: not a valid record"):
        write_record(record, POOR, GOOD, tmp_path)
    with pytest.raises(UserError, match=r"record\.json: not a valid record"):
        find_record(tmp_path, record.key)


def test_other_keys_are_not_found(tmp_path: Path) -> None:
    record = make_record()
    write_record(record, POOR, GOOD, tmp_path)
    assert find_record(tmp_path, record.key[:12] + "0" * 52) is None
    assert find_record(tmp_path, "f" * 64) is None
    assert find_record(tmp_path / "absent", record.key) is None


def test_results_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--results DIR"):
        write_record(make_record(), POOR, GOOD, tmp_path / "file")


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_record(make_record(), POOR, GOOD, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert list(iter_records(tmp_path)) == []


def _write(results: str, barrier: Any) -> None:
    barrier.wait()
    for seed in range(5):
        write_record(make_record(seed=seed), POOR, GOOD, Path(results))


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_write, args=(str(tmp_path), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    entries = list(iter_records(tmp_path))
    assert sorted(entry.record.cell.seed for entry in entries if isinstance(entry, StoredRecord)) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert len(entries) == 5
    assert not list(tmp_path.rglob("*.tmp"))


def test_damaged_and_foreign_files_are_quarantined(tmp_path: Path) -> None:
    good = [write_record(make_record(seed=seed), POOR, GOOD, tmp_path) for seed in (0, 1)]
    half = tmp_path / "mini-v1" / "x" / ".half-0123.1-2.tmp" / "record.json"
    half.parent.mkdir(parents=True)
    half.write_text("{")
    bad: dict[str, bytes] = {
        "cut": good[0].read_bytes()[:500],
        "empty": b"",
        "list": b"[]",
        "pickle": b"\x80\x04K\x01.",
        "utf16": good[0].read_text().encode("utf-16"),
        "deep": b"[" * 100_000,
        "deep_inputs": b'{"inputs": ' * 50_000,
        "long_number": b'{"parameters": ' + b"9" * 10_000 + b"}",
    }
    for name, content in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_bytes(content)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "record.json").symlink_to(good[0])
    (tmp_path / "folder" / "record.json").mkdir(parents=True)
    entries = list(iter_records(tmp_path))
    assert [entry.path for entry in entries if isinstance(entry, StoredRecord)] == sorted(good)
    quarantined = {
        entry.path.parent.name: entry.reason for entry in entries if isinstance(entry, Quarantined)
    }
    assert quarantined.keys() == bad.keys() | {"link"}
    assert all(len(reason) < 800 for reason in quarantined.values())
    assert list(iter_records(tmp_path / "absent")) == []


TEXT = to_json(make_record())


def forged(change: Callable[[dict[str, Any]], Any]) -> str:
    values = json.loads(TEXT)
    change(values)
    return json.dumps(values)


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a better number": (lambda v: v["best"]["metrics"].update(map50=99.9), "curve has other values"),
    "a worse number everywhere": (
        lambda v: (v["best"]["metrics"].update(map50=0.5), v["curve"][1].update(map50=0.5)),
        "best is worse than last",
    ),
    "over one hundred": (lambda v: v["best"]["metrics"].update(map50=101.0), "less than or equal to 100"),
    "negative": (lambda v: v["best"]["metrics"].update(map50=-1.0), "greater than or equal to 0"),
    "text for a number": (lambda v: v["best"]["metrics"].update(map50="99"), "valid number"),
    "truth for a number": (lambda v: v.update(parameters=True), "valid integer"),
    "NaN in metrics": (lambda v: v["best"]["metrics"].update(map50=float("nan")), "finite"),
    "infinity in the curve": (lambda v: v["curve"][0]["losses"].update(loss=float("inf")), "finite"),
    "NaN in settings": (lambda v: v["protocol"]["settings"].update(lr=float("nan")), "protocol"),
    "infinity in inputs": (lambda v: v["inputs"].update(lr=float("inf")), "inputs"),
    "another seed in the inputs": (lambda v: v["inputs"].update(seed=7), "key is not the hash of inputs"),
    "another key": (lambda v: v.update(key="0" * 64), "key is not the hash of inputs"),
    "a key that is a path": (lambda v: v.update(key="../" * 21 + "x"), "pattern"),
    "a backbone that is a path": (lambda v: v["cell"].update(backbone="../../etc"), "pattern"),
    "a dataset that is a path": (lambda v: v["cell"].update(dataset="/etc/passwd"), "pattern"),
    "a dataset that climbs": (lambda v: v["cell"].update(dataset="a/../b"), "pattern"),
    "a protocol that is a path": (lambda v: v["protocol"].update(name=".."), "pattern"),
    "a name with a line break": (lambda v: v["cell"].update(mode="scratch\n"), "pattern"),
    "an escape sequence": (lambda v: v["weights"].update(source="\x1b[2J"), "printable"),
    "a huge name": (lambda v: v["weights"].update(source="x" * 10_000), "300 characters"),
    "too many names": (lambda v: v["weights"].update(missing=["x"] * 30_000), "20000"),
    "an extra field": (lambda v: v.update({"<script>": 1}), "Extra inputs"),
    "a missing field": (lambda v: v.pop("environment"), "Field required"),
    "a reported row": (lambda v: v.update(trust="reported"), "no detections"),
    "an unknown trust": (lambda v: v.update(trust="certified"), "trust"),
    "another dataset": (lambda v: v["dataset"].update(name="gc10"), "different datasets"),
    "other classes": (lambda v: v["dataset"].update(classes=["a", "b"]), "dataset's classes"),
    "another split": (lambda v: v["dataset"]["splits"].update(validation=4), "validation split"),
    "no validation split": (lambda v: v["dataset"]["splits"].pop("validation"), "validation split"),
    "epochs in disorder": (lambda v: v["curve"].reverse(), "epochs do not rise"),
    "best after last": (lambda v: v["best"].update(epoch=9), "best comes after last"),
    "two results of one epoch": (lambda v: v["best"].update(epoch=4), "one epoch with two results"),
    "time without a zone": (lambda v: v.update(created="2026-01-01T00:00:00"), "timezone"),
    "a newer format": (lambda v: v.update(schema_version=2), "newer version"),
    "no format": (lambda v: v.update(schema_version="1"), "version"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_records_are_refused(tmp_path: Path, name: str) -> None:
    change, reason = FORGERIES[name]
    path = tmp_path / "record.json"
    path.write_text(forged(lambda values: None))
    read_record(path)
    path.write_text(forged(change))
    with pytest.raises(UserError, match=reason) as error:
        read_record(path)
    assert str(path) in str(error.value)
    assert "\x1b" not in str(error.value)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(to_json(make_record()).replace('"resumes": 1', '"resumes": 1, "resumes": 0'))
    with pytest.raises(UserError, match="twice"):
        read_record(path)


def test_lone_surrogates_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(to_json(make_record()).replace("weights.safetensors", "\\ud800"))
    with pytest.raises(UserError, match="record"):
        read_record(path)


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    path.write_text(to_json(make_record()))
    monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1000)
    with pytest.raises(UserError, match="larger than"):
        read_record(path)


@given(st.binary(max_size=300), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_record_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("junk") / "record.json"
    content = TEXT.encode()
    at %= len(content)
    path.write_bytes(content[:at] + junk + content[at + len(junk) :])
    with contextlib.suppress(UserError):
        assert isinstance(read_record(path), Record)


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_record().key = "0" * 64  # type: ignore[misc]


def test_trust_of_own_rows_is_measured() -> None:
    assert make_record().trust is Trust.MEASURED
    assert make_record(trust="reproduced").trust is Trust.REPRODUCED


def test_scratch_has_no_weights_and_no_method_in_its_folder() -> None:
    cell = make_record().cell.model_copy(update={"method": "-", "mode": "scratch"})
    record = make_record(cell=cell, weights=None)
    assert record.folder.name.startswith("swin-nano_scratch_yolov8_seed0-")


def test_unreadable_folder_is_reported(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads every folder")
    path = write_record(make_record(), POOR, GOOD, tmp_path)
    path.parent.chmod(0)
    try:
        entries = list(iter_records(tmp_path))
    finally:
        path.parent.chmod(0o755)
    assert [type(entry) for entry in entries] == [Quarantined]
