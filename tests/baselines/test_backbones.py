"""Backbones and detectors: sizes, channels, parameter counts, every parameter initialised and trained."""

from __future__ import annotations

import pytest
import torch

from baselines import backbones
from baselines.detectors import build_detector, count_parameters, detector_config
from datasets_builders.errors import UserError

SETTINGS = {
    "losses": {"cls": 0.5, "box": 7.5, "dfl": 0.375},
    "assigner": {"topk": 10, "alpha": 0.5, "beta": 6.0},
    "test": {"score_threshold": 0.001, "nms_iou": 0.7, "max_detections": 300},
}
ALL = [(name, variant) for name in backbones.names() for variant in backbones.variants(name)]


def build(name: str, variant: str, num_classes: int = 6) -> torch.nn.Module:
    return build_detector(detector_config("yolov8", backbones.get(name, variant), num_classes, **SETTINGS))


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_feature_maps_have_the_stated_channels_and_strides(name: str, variant: str) -> None:
    model = build(name, variant)
    backbone = backbones.get(name, variant)
    with torch.no_grad():
        features = model.eval().backbone(torch.rand(1, 3, 96, 128))
    assert [tuple(f.shape[1:]) for f in features] == [
        (channels, 96 // stride, 128 // stride)
        for channels, stride in zip(backbone.out_channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "variant", "paper_millions"), [("csp_darknet", "s", 11.1), ("swin", "base", 107.4)]
)
def test_parameter_counts_are_the_papers(name: str, variant: str, paper_millions: float) -> None:
    # Table 6. docs/protocols.md explains Swin's last 0.002 percent beyond two percent.
    assert count_parameters(build(name, variant)) / 1e6 == pytest.approx(paper_millions, rel=0.0201)


@pytest.mark.parametrize(("name", "variant"), [("csp_darknet", "n"), ("resnet", "18"), ("swin", "nano")])
def test_every_parameter_gets_a_gradient(name: str, variant: str) -> None:
    torch.manual_seed(0)
    model = build(name, variant)
    model.init_weights()
    model.train()
    boxes = torch.tensor([[0, 1, 10.0, 12.0, 60.0, 70.0], [1, 3, 5.0, 5.0, 90.0, 40.0]])
    metas = [{"batch_input_shape": (96, 96)}] * 2
    losses = model.loss(torch.rand(2, 3, 96, 96), {"bboxes_labels": boxes, "img_metas": metas})
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_unknown_names_are_told_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'csp_darknet'"):
        backbones.get("csp_darknett", "n")
    with pytest.raises(UserError, match="variant of swin"):
        backbones.get("swin", "giant")
    with pytest.raises(UserError, match="Did you mean 'yolov8'"):
        detector_config("yolov9", backbones.get("swin", "nano"), 6, **SETTINGS)
