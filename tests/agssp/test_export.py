"""Exported weights, loaded into plain models as their own README says: the same features as in our backbones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agssp.export import export
from baselines import backbones, openmmlab
from baselines.detectors import detector_config
from baselines.weights import resolve, save
from datasets_builders.errors import UserError

openmmlab.activate()

from mmengine.registry import DefaultScope

from baselines.pretraining import build_backbone

FACTS = {"corpus": "made | up", "seed": "0"}
TEST = {"score_threshold": 0.001, "nms_iou": 0.7, "max_detections": 300}


def randomised(model: nn.Module) -> nn.Module:
    """Gives every parameter and running statistic a value of its own."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            near_one = name.endswith("running_var") or value.ndim == 1
            value.copy_(1 + 0.2 * noise.abs() if near_one else 0.05 * noise)
    model.eval()  # mmdet's return nothing
    return model


def exported(name: str, variant: str, folder: Path) -> tuple[nn.Module, Path]:
    """Returns a backbone with random weights, and the folder of its export."""
    backbone = backbones.get(name, variant)
    model = randomised(build_backbone(backbone))
    state = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    save(folder / "made.safetensors", state, {"scope": "backbone", "backbone": backbone.id})
    export(resolve(folder / "made.safetensors"), backbone, folder / "out", facts=FACTS)
    return model, folder / "out"


def snippet(folder: Path, library: str) -> dict[str, Any]:
    """Runs what the README says for a library; returns its variables."""
    text = (folder / "README.md").read_text()
    found = re.search(rf"### {library}.*?```python\n(.*?)```", text, re.DOTALL)
    assert found, text
    variables: dict[str, Any] = {}
    exec(found[1], variables)
    return variables


def features(model: nn.Module, images: Tensor) -> list[Tensor]:
    model.eval()
    with torch.no_grad():
        return list(model(images))


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "variant"), [("csp_darknet", "n"), ("resnet", "18"), ("swin", "nano"), ("lite0", "std")]
)
def test_openmmlabs_backbones(name: str, variant: str, tmp_path: Path, monkeypatch) -> None:
    ours, folder = exported(name, variant, tmp_path)
    monkeypatch.chdir(folder)
    theirs = snippet(folder, "OpenMMLab")["model"]
    assert type(theirs).__module__.startswith("mm")
    images = torch.rand(2, 3, 64, 96)
    assert_equal(features(ours, images), features(theirs, images))


def test_torchvisions_resnet(tmp_path: Path, monkeypatch) -> None:
    ours, folder = exported("resnet", "18", tmp_path)
    monkeypatch.chdir(folder)
    theirs = snippet(folder, "torchvision")["model"]
    from torchvision.models.feature_extraction import create_feature_extractor

    images = torch.rand(2, 3, 64, 96)
    found = create_feature_extractor(theirs, ["layer2", "layer3", "layer4"]).eval()(images)
    assert_equal(features(ours, images), list(found.values()))


def test_timms_swin(tmp_path: Path, monkeypatch) -> None:
    ours, folder = exported("swin", "nano", tmp_path)
    monkeypatch.chdir(folder)
    theirs = snippet(folder, "timm")["model"].eval()
    images = torch.rand(1, 3, 384, 384)
    with torch.no_grad():
        last = theirs.forward_features(images)
    assert_equal(features(ours, images)[-1:], [last.permute(0, 3, 1, 2)])


def test_timms_lite0(tmp_path: Path, monkeypatch) -> None:
    ours, folder = exported("lite0", "std", tmp_path)
    monkeypatch.chdir(folder)
    images = torch.rand(2, 3, 64, 96)
    assert_equal(features(ours, images), features(snippet(folder, "timm")["model"], images))


@pytest.fixture
def detector(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A YOLOv8 with random weights, and the folder of its export."""
    from baselines.detectors import build_detector

    backbone = backbones.get("csp_darknet", "n")
    config = detector_config(
        "yolov8",
        backbone,
        1,
        losses={"cls": 0.5, "box": 7.5, "dfl": 0.375},
        assigner={"topk": 10, "alpha": 0.5, "beta": 6.0},
        test=TEST,
    )
    model = randomised(build_detector(config))
    header = {"scope": "detector", "backbone": backbone.id, "classes": ["defect"]}
    save(tmp_path / "made.safetensors", model.state_dict(), header)
    export(resolve(tmp_path / "made.safetensors"), backbone, tmp_path / "out", detector=config, facts=FACTS)
    return model, tmp_path / "out"


def test_openmmlabs_detector(detector, monkeypatch) -> None:
    ours, folder = detector
    monkeypatch.chdir(folder)
    theirs = snippet(folder, "OpenMMLab")["model"].eval()
    DefaultScope._instance_dict.clear()  # the README's line lasts for a process
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for mine, other in zip(ours(images), theirs(images), strict=True):
            assert_equal(list(mine), list(other))
    checkpoint = torch.load(folder / "openmmlab.pth", weights_only=True)
    assert checkpoint["meta"]["dataset_meta"] == {"classes": ["defect"]}


@pytest.mark.parametrize(("name", "plain"), [("faster_rcnn", "FasterRCNN"), ("dino", "DINO")])
def test_mmdets_own_detectors(name: str, plain: str, tmp_path: Path, monkeypatch) -> None:
    from baselines.detectors import build_detector

    backbone = backbones.get("resnet", "18")
    config = detector_config(name, backbone, 1, test=TEST, size="small")
    ours = randomised(build_detector(config))
    header = {"scope": "detector", "backbone": backbone.id, "classes": ["defect"]}
    save(tmp_path / "made.safetensors", ours.state_dict(), header)
    export(resolve(tmp_path / "made.safetensors"), backbone, tmp_path / "out", detector=config, facts=FACTS)
    monkeypatch.chdir(tmp_path / "out")
    theirs = snippet(tmp_path / "out", "OpenMMLab")["model"]
    DefaultScope._instance_dict.clear()
    assert (type(theirs).__module__.split(".")[0], type(theirs).__name__) == ("mmdet", plain)
    state = theirs.state_dict()
    assert set(state) == set(ours.state_dict())
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())


def test_ultralytics_names_come_back(detector, tmp_path: Path) -> None:
    """The file has the constant that only theirs stores, and loads into our detector as weights of theirs."""
    from safetensors.torch import load_file

    from baselines.weights import load

    ours, folder = detector
    state = load_file(folder / "ultralytics.safetensors")
    assert state["model.22.dfl.conv.weight"].flatten().tolist() == list(range(16))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    for value in ours.state_dict().values():
        value.zero_()
    report = load(ours, resolve(folder / "ultralytics.safetensors"), "detector")
    assert (report.layout, report.input, report.loaded) == ("ultralytics", "unit", len(before))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_equal_weights_give_equal_bytes_and_a_plain_readme(tmp_path: Path) -> None:
    contents = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        _, folder = exported("resnet", "18", tmp_path / run)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    names = {"README.md", "weights.safetensors", "openmmlab.pth", "openmmlab.py", "torchvision.safetensors"}
    assert set(contents[0]) == names
    assert contents[0]["weights.safetensors"] == (tmp_path / "a" / "made.safetensors").read_bytes()
    text = contents[0]["README.md"].decode()
    assert "| corpus | made \\| up |" in text
    assert "values in [0, 1]" in text


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        exported("resnet", "18", tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
