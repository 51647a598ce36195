"""The board's anomaly rows: the paper's Table 4 as printed, and measured ones averaged over seeds."""

from __future__ import annotations

import math
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import environment
from benchmark.anomaly_metrics import AnomalyMetrics, ImageMetrics
from benchmark.anomaly_outputs import Outputs
from benchmark.anomaly_records import AnomalyCell, AnomalyRecord, write_record
from benchmark.record_schema import DatasetUsed, StageCost, Trust
from datasets_builders.storage import content_key
from leaderboard.anomaly import measured_anomaly_rows, reported_anomaly_rows


def _store(results: Path, seed: int, auroc: float, trust: Trust = Trust.MEASURED, **cell: Any) -> None:
    outputs = Outputs(("a",), np.zeros(1, np.float32), np.zeros((1, 2, 2), np.float32))
    inputs: dict[str, Any] = {"seed": seed, **cell}
    cost = StageCost(seconds=1.0, peak_ram_mib=1.0, peak_gpu_mib=None)
    asked = {
        "detector": "kead",
        "encoder": "tiny",
        "settings": {},
        "dataset": "neu_det",
        "shots": 0,
        "seed": seed,
    }
    record = AnomalyRecord(
        trust=trust,
        key=content_key(inputs),
        inputs=inputs,
        cell=AnomalyCell(**asked | cell),
        dataset=DatasetUsed(
            name="neu_det", fingerprint="0" * 64, classes=("x",), splits={"validation": 1}, procedural=False
        ),
        normals={},
        evaluation_size=240,
        metrics=AnomalyMetrics(
            images=1,
            anomalous_images=1,
            pixel_images=1,
            image=ImageMetrics(auroc=auroc, ap=1.0, f1_max=1.0),
            pixel=None,
            mask_iou=None,
        ),
        outputs_sha256=outputs.sha256(),
        images_per_second=4.0,
        batch_size=1,
        cost={"score": cost},
        environment=environment.collect(),
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    write_record(record, outputs, results)


def test_the_papers_table_4_is_complete() -> None:
    rows = reported_anomaly_rows()
    assert set(rows.detector) == {"winclip", "april_gan", "anomaly_clip", "aa_clip", "kead"}
    assert rows[["image_auroc", "pixel_auroc"]].notna().all().all()
    assert not rows.duplicated(["detector", "encoder", "switches", "shots", "dataset"]).any()
    assert len(rows) == 26  # 13 lines of the table on two datasets
    best = rows[(rows.encoder == "huge") & (rows.switches == "defect_features, vv_attention")]
    assert best[["dataset", "image_auroc", "pixel_auroc"]].to_numpy().tolist() == [
        ["casting_billet", 93.5, 77.7],
        ["steel_pipe", 69.0, 81.0],
    ]


def test_measured_rows_are_means_over_seeds(tmp_path: Path) -> None:
    assert measured_anomaly_rows(tmp_path / "none").rows.empty
    _store(tmp_path, 0, 80.0)
    _store(tmp_path, 1, 90.0)
    _store(tmp_path, 0, 50.0, settings={"vv": False})
    rows = measured_anomaly_rows(tmp_path).rows
    assert rows[["switches", "image_auroc", "seeds"]].to_numpy().tolist() == [
        ["", 85.0, 2],
        ["vv=False", 50.0, 1],
    ]
    assert all(math.isnan(value) for value in rows.pixel_auroc)
    for sender in ("a", "b"):  # one record, sent by two people
        _store(tmp_path / "submissions" / sender, 0, 99.0)
    sent = measured_anomaly_rows(tmp_path).rows.query("trust == 'submitted'")
    assert sent[["image_auroc", "seeds"]].to_numpy().tolist() == [[99.0, 1]]
    shutil.rmtree(tmp_path / "submissions")
    (damaged,) = tmp_path.glob("anomaly/*/*seed1*/anomaly.json")
    damaged.write_text("{")
    measured = measured_anomaly_rows(tmp_path)
    assert measured.rows.image_auroc.tolist() == [80.0, 50.0]
    assert len(measured.damaged) == 1


def test_no_record_says_how_far_to_trust_it(tmp_path: Path) -> None:
    _store(tmp_path, 0, 80.0)
    _store(tmp_path, 0, 70.0, shots=1, trust=Trust.REPRODUCED)
    _store(tmp_path / "submissions" / "x" / "records", 0, 60.0, shots=2)
    found = measured_anomaly_rows(tmp_path).rows.set_index("image_auroc")["trust"].to_dict()
    assert found == {80.0: "measured", 70.0: "submitted", 60.0: "submitted"}
