"""Sheets that explain records: which images, what is drawn on them, and where the detector looks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import datasets_builders
from agssp.drawing import MARGIN, TILE
from baselines import backbones
from baselines.weights import save
from benchmark import environment
from benchmark import protocol as protocols
from benchmark.cli import run_app
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, evaluate
from benchmark.explain_sheet import MISSED, RIGHT, WRONG, Answer, Boxes, Example, Heading, sheet
from benchmark.records import CellIdentity, DatasetUsed, EpochResult, ProtocolUsed, Record, write_record
from datasets_builders import storage
from datasets_builders.schema import detection_features
from datasets_builders.storage import content_key

CLASSES = ["scratch", "inclusion"]
FINGERPRINT = "d" * 64
BOXES = {"a": [[4, 4, 30, 20]], "b": [[8, 2, 20, 20], [40, 10, 16, 16]], "c": [], "d": [[10, 6, 24, 12]]}


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A validation split of four images of 64 x 32 pixels, which the record's dataset stands for."""
    import datasets

    rng = np.random.default_rng(0)
    rows = []
    for name, boxes in BOXES.items():
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(80, 160, (32, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
        count = len(boxes)
        objects = {"id": list(range(count)), "bbox": boxes, "area": [1.0] * count, "category": [0] * count}
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "image_id": name,
                "width": 64,
                "height": 32,
                "objects": objects,
                "mask": None,
            }
        )
    made = datasets.Dataset.from_list(rows, features=detection_features(CLASSES))
    monkeypatch.setattr(datasets_builders, "fingerprint", lambda name: FINGERPRINT)
    monkeypatch.setattr(datasets_builders, "load", lambda name, part: made)
    return made


def detections(found: dict[str, list[list[float]]]) -> Detections:
    """Corners and score of each image's detections, all of the first class."""
    rows = [np.array(found.get(name, []), np.float64).reshape(-1, 5) for name in BOXES]
    return Detections.from_images(
        CLASSES,
        list(BOXES),
        [r[:, :4] for r in rows],
        [r[:, 4] for r in rows],
        [np.zeros(len(r)) for r in rows],
    )


def corners(box: list[int]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y + h]


GOOD = detections({name: [[*corners(box), 0.9] for box in boxes] for name, boxes in BOXES.items()})
POOR = detections(
    {
        "a": [[*corners([4, 4, 30, 20]), 0.8]],
        "b": [[*corners(BOXES["b"][0]), 0.7]],
        "d": [[40, 20, 60, 30, 0.6]],
    }
)


def store(split: Any, answers: Detections, seed: int, folder: Path, fingerprint: str = FINGERPRINT) -> Path:
    backbone = backbones.get("csp_darknet", "n")
    recipe = protocols.load("mock-v1").recipe("csp_darknet", "yolov8").model_dump(mode="json")
    inputs = {"seed": seed, "backbone": backbone.config, "recipe": recipe, "data": fingerprint}
    metrics = evaluate(GroundTruth.from_dataset(split), answers)
    result = EpochResult(epoch=2, metrics=metrics, detections_sha256=answers.sha256())
    record = Record(
        key=content_key(inputs),
        inputs=inputs,
        cell=CellIdentity(
            backbone="csp_darknet",
            variant="n",
            method="-",
            mode="scratch",
            detector="yolov8",
            dataset="neu_det",
            seed=seed,
        ),
        protocol=ProtocolUsed(name="mock", version=1, sha256="a" * 64, settings={}),
        dataset=DatasetUsed(
            name="neu_det",
            fingerprint=fingerprint,
            classes=tuple(CLASSES),
            splits={"train": 1, "validation": 4},
            procedural=True,
        ),
        last=result,
        best=result,
        curve=(),
        weights=None,
        parameters=1,
        cost={},
        resumes=0,
        environment=environment.collect(),
        created="2026-01-01T00:00:00Z",  # type: ignore[arg-type]
    )
    return write_record(record, answers, answers, folder)


@pytest.fixture
def records(split: Any, tmp_path: Path) -> tuple[Path, Path]:
    return store(split, GOOD, 0, tmp_path), store(split, POOR, 1, tmp_path)


def run(*words: str | Path) -> int:
    return run_app(["explain", *map(str, words)])


def test_images_that_differ_most_come_first(records, tmp_path: Path, capsys) -> None:
    out = tmp_path / "sheet.png"
    words = (
        records[0],
        "--against",
        records[1],
        "--out",
        out,
        "--detections-only",
        "--images",
        "3",
        "--json",
    )
    assert run(*words) == 0
    found = json.loads(capsys.readouterr().out)
    # d: found against a false positive and a miss; b: both found against one of two; a and c: equal.
    assert list(found["images"])[:2] == ["d", "b"]
    assert found["images"]["d"] == [1.0, 0.0]
    assert found["images"]["b"] == pytest.approx([1.0, 2 / 3])
    assert [entry["threshold"] for entry in found["records"]] == pytest.approx([0.9, 0.7])
    counts = [(entry["right"], entry["wrong"], entry["missed"]) for entry in found["records"]]
    assert counts == [(4, 0, 0), (2, 0, 2)]
    first = out.read_bytes()
    assert run(*words) == 0
    assert out.read_bytes() == first


def test_named_images_and_threshold(records, tmp_path: Path, capsys) -> None:
    out = tmp_path / "sheet.png"
    options = ("--ids", "c", "--ids", "a", "--threshold", "0.5", "--detections-only", "--json")
    assert run(records[1], "--out", out, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == {"c": [1.0], "a": [1.0]}
    assert (found["records"][0]["wrong"], found["records"][0]["missed"]) == (1, 2)
    assert run(records[1], "--out", out, "--ids", "e", "--detections-only") == 2
    assert "'e'" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(split, records, tmp_path: Path, capsys) -> None:
    out = tmp_path / "sheet.png"
    assert run(records[0], "--out", out) == 2
    message = capsys.readouterr().err
    assert "--weights FILE" in message
    assert "--detections-only" in message
    other = store(split, GOOD, 2, tmp_path, fingerprint="e" * 64)
    assert run(records[0], "--against", other, "--out", out, "--detections-only") == 2
    assert "different data" in capsys.readouterr().err
    assert run(records[0], "--out", out, "--against-weights", out) == 2
    assert "--against RECORD" in capsys.readouterr().err
    save(tmp_path / "other.safetensors", {"backbone.x": torch.ones(1)}, {})
    assert run(records[0], "--out", out, "--weights", tmp_path / "other.safetensors") == 2
    assert "not the weights of" in capsys.readouterr().err
    POOR.save(records[0].parent / "last.parquet")
    assert run(records[0], "--out", out, "--detections-only") == 2
    assert "not those that it names" in capsys.readouterr().err
    assert not out.exists()


def test_attention_is_of_the_image_as_the_detector_saw_it(
    split, records, tmp_path: Path, fresh_home: Path
) -> None:
    """64 x 32 pixels in the middle of 64 x 64: the border above and below is not of the image."""
    from baselines.training.data import validation_loader
    from baselines.training.detector import new_detector
    from benchmark.attention import attention_maps
    from benchmark.records import read_record
    from benchmark.trained import stored_weights

    record = read_record(records[0])
    recipe = protocols.load("mock-v1").recipe("csp_darknet", "yolov8")
    torch.manual_seed(0)
    model: Any = new_detector("yolov8", backbones.get("csp_darknet", "n"), 2, recipe)
    model.eval()
    place = storage.home() / "runs" / record.key / "epoch-2.safetensors"
    save(place, model.state_dict(), {})
    assert stored_weights(record) == place
    maps = attention_maps(record, place, split)
    batch = next(iter(validation_loader(split.select([1]), recipe)))
    batch = torch.stack(batch["inputs"]).flip(1).float() / 255  # RGB in [0, 1]
    assert torch.equal(
        batch[0, :, 16:48], torch.from_numpy(np.array(split[1]["image"])).permute(2, 0, 1) / 255
    )
    with torch.no_grad():
        features = model.backbone(batch)[-2:]
    assert len(maps) == 4
    for found, layer in zip(maps[1], features, strict=True):
        squares = layer[0].square().sum(0).numpy()
        whole = cv2.resize(squares, (64, 64), interpolation=cv2.INTER_LINEAR)
        wanted = whole[16:48] / whole[16:48].max()
        assert found.shape == (32, 64)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    out = tmp_path / "sheet.png"
    assert run(records[0], "--out", out) == 0
    narrow = tmp_path / "narrow.png"
    assert run(records[0], "--out", narrow, "--detections-only") == 0
    widths = [Image.open(path).width for path in (out, narrow)]
    assert widths[0] - widths[1] == 2 * (TILE + 10)


def test_boxes_have_the_colours_of_the_legend() -> None:
    none = Boxes(np.zeros((0, 4), np.float32), ())

    def box(*place: float) -> Boxes:
        return Boxes(np.array([place], np.float32), ("scratch 0.90",))

    answer = Answer((), box(20, 20, 80, 80), box(120, 20, 200, 80), box(20, 140, 100, 200))
    grey = np.full((TILE, TILE, 3), 128, np.uint8)
    page = np.asarray(
        sheet([Example("a", grey, none, (answer,))], [Heading("one", ("facts", "more"))], [], "title", "some")
    )
    left, top = 2 * MARGIN - MARGIN + TILE + 10, page.shape[0] - MARGIN - 10 - 24 - TILE
    tile = page[top : top + TILE, left : left + TILE]
    assert tuple(tile[79, 50]) == ImageColor.getrgb(RIGHT)
    assert tuple(tile[79, 160]) == ImageColor.getrgb(WRONG)
    edge = tile[199, 20:99]
    dashes = (edge == ImageColor.getrgb(MISSED)).all(axis=1)
    assert 0.3 < dashes.mean() < 0.8  # dashed, so that it differs without colours too
    assert (tile[130:135, 210:230] == 128).all()
    assert answer.caption == "TP 1   FP 1   FN 1   F1 0.50"
