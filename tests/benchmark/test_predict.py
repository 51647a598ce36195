"""A record's detector, exported and used on images: what it finds is what its record holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import datasets_builders
from baselines.weights import resolve, save
from benchmark.cli import run_app
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth
from benchmark.matching import match_all
from benchmark.predict import load_detector
from benchmark.records import read_record
from datasets_builders.errors import UserError

SIZE = 64


def make_folder(folder: Path, count: int = 40) -> Path:
    """Bright squares and dark bars, with YOLO labels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        pixels, lines = rng.integers(90, 120, (SIZE, SIZE, 3), dtype=np.uint8), []
        for label, (width, height) in enumerate(((16, 16), (24, 8))[: index % 3]):
            x, y = int(rng.integers(0, SIZE - width)), int(rng.integers(0, SIZE - height))
            pixels[y : y + height, x : x + width] = 20 if label else 230
            values = ((x + width / 2) / SIZE, (y + height / 2) / SIZE, width / SIZE, height / SIZE)
            lines.append(" ".join(map(str, (label, *values))))
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("square\nbar\n")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The home, the images, and the record of a detector that was finetuned on them."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGSSP_BENCH_HOME", str(folder / "home"))
        datasets_builders.prepare("own_shapes", make_folder(folder / "shapes"))
        words = (
            "run --backbone csp_darknet --mode scratch --dataset own_shapes --protocol mock-v1 --device cpu"
        )
        assert run_app([*words.split(), "--seeds", "0", "--results", str(folder / "results")]) == 0
    (record,) = (folder / "results").glob("*/*/*")
    return folder / "home", folder / "shapes", record


@pytest.fixture
def home(trained: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(trained[0]))
    return trained[0]


@pytest.mark.slow
def test_it_finds_what_its_record_holds(trained: Any, home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    _, shapes, folder = trained
    record = read_record(folder)
    stored = Detections.load(folder / record.detections_files[0])
    assert run_app(["export", str(folder), "--out", str(tmp_path / "out")]) == 0

    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "another machine"))
    detector = load_detector(tmp_path / "out", threshold=0.0)
    assert detector.classes == ("bar", "square")
    found = list(detector.detect_all(shapes / f"{image_id}.png" for image_id in stored.image_ids))
    for place, answers in enumerate(found):
        rows = np.arange(stored.offsets[place], stored.offsets[place + 1])
        rows = rows[np.argsort(-stored.scores[rows], kind="stable")]
        assert len(answers) == len(rows) > 0
        np.testing.assert_allclose([one.score for one in answers], stored.scores[rows], atol=1e-5)
        corners = np.array([one.box for one in answers])
        corners[:, 2:] += corners[:, :2]
        if answers[0].score - answers[1].score > 1e-4:  # of equal scores either may come first
            np.testing.assert_allclose(corners[0], stored.boxes[rows[0]], atol=1e-2)
            assert answers[0].category == stored.classes[stored.labels[rows[0]]]
    with pytest.raises(UserError, match="not a JPEG"):
        detector.detect(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        detector.detect(tmp_path / "missing.png")


@pytest.mark.slow
def test_the_threshold_is_that_of_the_best_f1(trained: Any, home: Path, tmp_path: Path) -> None:
    folder = trained[2]
    record = read_record(folder)
    stored = Detections.load(folder / record.detections_files[0])
    ground_truth = GroundTruth.from_dataset(datasets_builders.load("own_shapes", "validation"))
    expected = match_all(ground_truth, stored).best_threshold()
    assert load_detector(folder).threshold == expected
    assert run_app(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert load_detector(tmp_path / "out").threshold == expected
    assert run_app(["export", str(folder), "--out", str(tmp_path / "own"), "--threshold", "0.5"]) == 0
    assert load_detector(tmp_path / "own" / "weights.safetensors").threshold == 0.5


@pytest.mark.slow
def test_on_the_command_line(
    trained: Any, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, shapes, folder = trained
    new = tmp_path / "new"
    (new / "deep").mkdir(parents=True)
    for name in ("1.png", "deep/1.png"):
        (new / name).write_bytes((shapes / "1.png").read_bytes())
    (new / "broken.png").write_bytes(b"\x89PNG")
    (new / "notes.txt").write_text("not an image")
    words = ["predict", str(folder), str(new), str(shapes / "2.png")]
    out = tmp_path / "found"
    assert run_app([*words, "--out", str(out), "--threshold", "0.001", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["images"]) == {str(new / "1.png"), str(new / "deep" / "1.png"), str(shapes / "2.png")}
    assert list(printed["skipped"]) == [str(new / "broken.png")]
    assert json.loads((out / "detections.json").read_text()) == printed
    assert sorted(path.name for path in out.iterdir()) == ["1.png", "1~2.png", "2.png", "detections.json"]
    drawn, plain = (np.asarray(Image.open(path)) for path in (out / "1.png", new / "1.png"))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any() == bool(printed["images"][str(new / "1.png")])
    assert run_app([*words, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run_app(words) == 0
    assert re.search(r"2\.png: \d+ found", capsys.readouterr().out)
    assert run_app(["predict", str(folder), str(tmp_path / "nowhere")]) == 2
    assert "no image or folder" in capsys.readouterr().err


@pytest.mark.slow
def test_openmmlab_loads_the_export(trained: Any, home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import torch
    from mmengine.registry import DefaultScope

    assert run_app(["export", str(trained[2]), "--out", str(tmp_path / "out")]) == 0
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "# Finetuned detector" in readme
    assert "the 2 classes" in readme
    assert "nc=2" in readme
    monkeypatch.chdir(tmp_path / "out")
    snippets = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (ours,) = (text for text in snippets if "benchmark.predict" in text)
    (theirs,) = (text for text in snippets if "mmyolo" in text)
    exec(ours, {})
    variables: dict[str, Any] = {}
    exec(theirs, variables)
    DefaultScope._instance_dict.clear()  # the README's line lasts for a process
    assert variables["model"].bbox_head.num_classes == 2
    meta = torch.load("openmmlab.pth", weights_only=True)["meta"]
    assert meta["dataset_meta"] == {"classes": ["bar", "square"]}


@pytest.mark.slow
def test_what_cannot_be_used_is_said(
    trained: Any, home: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, shapes, folder = trained
    picture = str(shapes / "1.png")
    assert run_app(["predict", str(tmp_path), picture]) == 2
    assert "neither a record nor an exported detector" in capsys.readouterr().err
    assert run_app(["export", str(folder), "--out", str(tmp_path / "out")]) == 0
    weights = tmp_path / "out" / "weights.safetensors"
    assert run_app(["predict", str(weights), picture, "--weights", str(weights)]) == 2
    assert "leave out --weights" in capsys.readouterr().err
    save(tmp_path / "plain.safetensors", {}, {"scope": "backbone"})
    assert run_app(["predict", str(tmp_path / "plain.safetensors"), picture]) == 2
    assert "not an exported detector" in capsys.readouterr().err
    save(tmp_path / "other.safetensors", {}, {"kind": "finetuned detector", "classes": []})
    assert run_app(["predict", str(tmp_path / "other.safetensors"), picture]) == 2
    assert "its description is damaged" in capsys.readouterr().err
    assert run_app(["predict", str(folder), picture, "--weights", str(tmp_path / "plain.safetensors")]) == 2
    assert "its tensors differ" in capsys.readouterr().err
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "another machine"))
    assert run_app(["export", str(folder), "--out", str(tmp_path / "again")]) == 2
    assert "are not on this machine" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    given = ["export", str(folder), "--out", str(tmp_path / "again"), "--weights", str(weights)]
    assert run_app(given) == 2
    assert "own_shapes is not ready on this machine" in capsys.readouterr().err
    assert run_app([*given, "--threshold", "0.3"]) == 0
    assert resolve(str(tmp_path / "again" / "weights.safetensors")).scope == "detector"


def test_own_images_are_not_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "prepare", "weights.safetensors", "--backbone", "csp_darknet:n", "--name", "mine"]
    words += ["--method-text", "Made here.", "--licence", "mit", "--datasets", "own_shapes"]
    assert run_app([*words, "--out", str(tmp_path / "out")]) == 2
    assert "own_shapes is a set of your own images" in capsys.readouterr().err
