"""What a detector costs: FLOPs against closed forms, and a measurement from the command line."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from baselines import openmmlab
from benchmark import efficiency
from benchmark.cli import run_app
from benchmark.efficiency import count_flops, measure, of_names
from datasets_builders.errors import UserError

openmmlab.activate()


class Plain(nn.Module):
    """A convolution, a normalisation and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 5, stride=2, padding=2, groups=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.outputs = nn.Linear(8, 10)

    def forward(self, images: torch.Tensor, samples: list, mode: str) -> torch.Tensor:
        return self.outputs(self.norm(self.convolution(images)).mean(dim=(2, 3)))


def test_flops_of_a_convolution_and_a_product_are_the_closed_form() -> None:
    # Two for each multiplication with its addition; 16 x 16 positions, 3 x 5 x 5 values for each of 8 filters.
    assert count_flops(Plain().eval(), 32) == 2 * 16 * 16 * 8 * (3 * 5 * 5) + 2 * 8 * 10


def test_flops_grow_with_the_area_and_fit_what_is_published() -> None:
    """YOLOv8-n with 80 classes has 8.7 GFLOPs at 640 pixels, by its makers."""
    from baselines.training.detector import new_detector

    subject = of_names("csp_darknet:n", "yolov8", "mock-v1", 80, 64)
    model = new_detector("yolov8", subject.backbone, 80, subject.recipe).eval()
    at_64, at_128 = (count_flops(model, size) for size in (64, 128))
    assert at_128 == 4 * at_64
    assert at_64 * 100 / 1e9 == pytest.approx(8.7, rel=0.02)


@pytest.mark.parametrize("detector", ["yolov8", "faster_rcnn", "dino"])
def test_every_detector_is_measured(detector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(efficiency, "REPEATS", 2)
    monkeypatch.setattr(efficiency, "BATCHES", (1, 2))
    subject = of_names("csp_darknet:n", detector, "mock-v1", 3, 64)
    found = measure(subject, "cpu")
    assert found["parameters"] > 1e6
    assert found["flops"] > 1e7
    assert found["batch_1"]["batch"] == 1
    assert found["best_batch"]["images_per_second"] >= found["batch_1"]["images_per_second"] > 0
    for rate in (found["batch_1"], found["best_batch"]):
        assert rate["images_per_second"] == pytest.approx(1000 * rate["batch"] / rate["milliseconds"])
    assert found["threads"] == torch.get_num_threads()
    assert found["best_batch"]["peak_gpu_mib"] is None


def test_the_search_ends_where_more_images_bring_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {1: 10.0, 2: 19.0, 4: 19.5, 8: 40.0}
    made = []

    def rate(model: nn.Module, batch: int, side: int, device: str) -> dict:
        made.append(batch)
        return {"batch": batch, "images_per_second": rates[batch]}

    monkeypatch.setattr(efficiency, "_rate", rate)
    found = measure(of_names("csp_darknet:n", "yolov8", "mock-v1", 3, 64), "cpu")
    assert made == found["tried_batches"] == [1, 2, 4]
    assert found["best_batch"]["batch"] == 4


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(efficiency, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(efficiency, "REPEATS", 1)
    monkeypatch.setattr(efficiency, "BATCHES", (1,))
    named = ["efficiency", "--backbone", "csp_darknet", "--protocol", "mock-v1", "--device", "cpu"]
    assert run_app([*named, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["backbone"], found["image_size"], found["classes"]) == ("csp_darknet:n", 64, 6)
    assert run_app(["efficiency"]) == 2
    assert "Name either" in capsys.readouterr().err
    assert run_app([*named, "--image-size", "50"]) == 2
    assert "multiple of 32" in capsys.readouterr().err
    assert run_app(["efficiency", "some/record.json", "--classes", "3"]) == 2
    assert "leave these options out" in capsys.readouterr().err


def test_a_foreign_size_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean"):
        of_names("csp_darknt", "yolov8", "mock-v1", 3, 64)
