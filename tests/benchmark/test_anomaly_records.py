"""Outputs and records of the anomaly benchmark: what is stored comes back, and what is wrong is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark import environment
from benchmark.anomaly_metrics import AnomalyMetrics, ImageMetrics
from benchmark.anomaly_outputs import Outputs
from benchmark.anomaly_records import (
    AnomalyCell,
    AnomalyRecord,
    find_record,
    iter_records,
    read_record,
    write_record,
)
from benchmark.record_schema import DatasetUsed, StageCost, to_json
from benchmark.records import Quarantined
from benchmark.records import iter_records as iter_cells
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key


def _outputs(images: int = 5, grid: tuple[int, int] = (3, 4), seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    return Outputs(
        tuple(f"image-{index}" for index in range(images)),
        rng.random(images).astype(np.float32),
        rng.random((images, *grid)).astype(np.float32),
    )


def _record(outputs: Outputs, **changes: Any) -> AnomalyRecord:
    inputs = {"seed": changes.pop("seed", 0), "version": 1}
    cost = StageCost(seconds=1.0, peak_ram_mib=100.0, peak_gpu_mib=None)
    fields = {
        "key": content_key(inputs),
        "inputs": inputs,
        "cell": AnomalyCell(
            detector="kead", encoder="MODEL/tag", settings={}, dataset="neu_det/mini50", shots=2, seed=0
        ),
        "dataset": DatasetUsed(
            name="neu_det/mini50",
            fingerprint="0" * 64,
            classes=("a",),
            splits={"train": 9, "validation": len(outputs.image_ids)},
            procedural=False,
        ),
        "normals": {"neu_det": ("x", "y")},
        "evaluation_size": 240,
        "metrics": AnomalyMetrics(
            images=len(outputs.image_ids),
            anomalous_images=2,
            pixel_images=3,
            image=ImageMetrics(auroc=70.0, ap=60.0, f1_max=50.0),
            pixel=None,
            mask_iou=None,
        ),
        "outputs_sha256": outputs.sha256(),
        "images_per_second": 2.5,
        "batch_size": 8,
        "cost": {"fit": cost, "score": cost},
        "environment": environment.collect(),
        "created": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return AnomalyRecord(**fields | changes)


def test_outputs_come_back_to_the_last_bit(tmp_path: Path) -> None:
    outputs = _outputs()
    outputs.save(tmp_path / "a.parquet")
    outputs.save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    found = Outputs.load(tmp_path / "a.parquet")
    assert found.image_ids == outputs.image_ids
    assert np.array_equal(found.maps, outputs.maps)
    assert np.array_equal(found.scores, outputs.scores)
    assert found.sha256() == outputs.sha256()


@pytest.mark.parametrize("what", ["ids", "scores", "maps", "grid"])
def test_every_part_of_the_outputs_changes_their_hash(what: str) -> None:
    one = _outputs()
    ids, scores, maps = one.image_ids, one.scores.copy(), one.maps.copy()
    if what == "ids":
        ids = (*ids[:-1], "other")
    elif what == "scores":
        scores[0] += 1
    elif what == "maps":
        maps[0, 0, 0] += 1
    else:
        maps = maps.reshape(5, 4, 3)
    assert Outputs(ids, scores, maps).sha256() != one.sha256()


@pytest.mark.parametrize(
    ("ids", "scores", "maps", "complaint"),
    [
        (("a",), [np.nan], np.zeros((1, 2, 2)), "image score of 'a' is not finite"),
        (("a", "b"), [0, 0], np.array([[[0.0]], [[np.inf]]]), "map of 'b' is not finite"),
        (("a", "a"), [0, 0], np.zeros((2, 2, 2)), "twice"),
        (("a",), [0, 0], np.zeros((2, 2, 2)), "do not have scores and maps"),
        (("a",), [0], np.zeros((1, 4)), "do not have scores and maps"),
        (("a",), [0], np.zeros((1, 2, 0)), "limit"),
        (("a",), [0], np.zeros((1, 1, 2000)), "limit"),
        (("a\n",), [0], np.zeros((1, 2, 2)), "printable"),
        ((), [], np.zeros((0, 2, 2)), "0 images"),
    ],
)
def test_impossible_outputs_are_refused(ids: Any, scores: Any, maps: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Outputs(ids, np.asarray(scores, np.float32), np.asarray(maps, np.float32))


def _parquet(path: Path, header: Any, **columns: Any) -> Path:
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata({b"agssp_bench": json.dumps(header).encode()}), path)
    return path


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    good = {"format": "agssp-bench/anomaly-outputs/1", "grid": [2, 2]}
    for content in (b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not readable"):
            Outputs.load(path)
    with pytest.raises(UserError, match="copy both"):
        Outputs.load(tmp_path / "none.parquet")
    for header in (None, {}, {"format": "other"}, {**good, "grid": 4}, {**good, "grid": [2, "2"]}):
        with pytest.raises(UserError, match=r"x\.parquet"):
            Outputs.load(_parquet(path, header, image_id=["a"]))
    with pytest.raises(UserError, match="limit"):
        Outputs.load(_parquet(path, {**good, "grid": [10**6, 10**6]}, image_id=["a"]))
    with pytest.raises(UserError, match="columns"):
        Outputs.load(_parquet(path, good, image_id=["a"], image_score=[1.0], map=[[1.0] * 4]))


def test_a_record_comes_back_and_is_found(tmp_path: Path) -> None:
    outputs = _outputs()
    record = _record(outputs)
    path = write_record(record, outputs, tmp_path)
    assert path.parent.parent == tmp_path / "anomaly" / "neu_det--mini50"
    assert path.parent.name == f"kead-model-tag_2shot_seed0-{record.key[:12]}"
    assert read_record(path) == read_record(path.parent) == record
    assert Outputs.load(path.parent / "outputs.parquet").sha256() == record.outputs_sha256
    found = find_record(tmp_path, record.key)
    assert found is not None
    assert found.record == record
    assert find_record(tmp_path, "0" * 64) is None
    assert [entry.path for entry in iter_records(tmp_path)] == [path]
    assert list(iter_cells(tmp_path)) == []  # records of finetuning are another kind


def test_a_record_is_never_replaced(tmp_path: Path) -> None:
    outputs = _outputs()
    path = write_record(_record(outputs), outputs, tmp_path)
    before = path.read_bytes()
    assert write_record(_record(outputs, images_per_second=99.0), outputs, tmp_path) == path
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="not the ones"):
        write_record(_record(outputs), _outputs(seed=1), tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"key": "1" * 64}, "key is not the hash"),
        ({"trust": "reported"}, "no record"),
        ({"normals": {"neu_det": ["x"]}}, "as many as the shots"),
        ({"metrics.images": 7}, "validation split"),
        ({"dataset.name": "other"}, "different datasets"),
        ({"metrics.image.auroc": 101.0}, "metrics.image.auroc"),
        ({"images_per_second": 0.0}, "images_per_second"),
        ({"evaluation_size": 100_000}, "evaluation_size"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    outputs = _outputs()
    path = write_record(_record(outputs), outputs, tmp_path)
    content = json.loads(path.read_text())
    for place, value in changes.items():
        *outer, last = place.split(".")
        part = content
        for name in outer:
            part = part[name]
        part[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint):
        read_record(path)
    (entry,) = iter_records(tmp_path)
    assert isinstance(entry, Quarantined)


def test_json_is_stable() -> None:
    record = _record(_outputs())
    assert to_json(record) == to_json(AnomalyRecord.model_validate_json(to_json(record)))
