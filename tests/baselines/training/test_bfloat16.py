"""bfloat16 in the network, float32 in what it hands on."""

from __future__ import annotations

import copy

import pytest
import torch

from baselines import backbones, openmmlab

openmmlab.activate()

from baselines.training import precision
from baselines.training.detector import new_detector, prepare_process
from benchmark import protocol

AMD, INTEL = {"cpu_name": "AMD EPYC"}, {"cpu_name": "Intel Xeon"}
AVX, AMX = {"avx512_bf16": True, "amx_bf16": False}, {"avx512_bf16": True, "amx_bf16": True}


@pytest.mark.parametrize(
    ("processor", "allowed", "expected"),
    [
        (AMD | AVX, True, "bf16"),
        (AMD | AVX, False, "fp32"),
        (AMD, True, "fp32"),
        (INTEL | AMX, True, "bf16"),
        (INTEL | AVX, True, "fp32"),  # it has the instruction, which takes longer than float32's
        ({}, True, "fp32"),
    ],
)
def test_bfloat16_is_taken_where_it_is_fast_and_allowed(monkeypatch, processor, allowed, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    assert precision.resolve(allowed) == expected


@pytest.fixture(params=["yolov8", "faster_rcnn", "dino"])
def pair(request):
    """A detector in float32 and its copy in bfloat16, in evaluation."""
    prepare_process(0, 0)
    recipe = protocol.load("mock-v1").recipe("csp_darknet", request.param)
    recipe = recipe.model_copy(update={"mixed_precision": False})
    plain = new_detector(request.param, backbones.get("csp_darknet", "n"), 2, recipe)
    plain.init_weights()
    plain.eval()
    low = copy.deepcopy(plain)
    precision.compute_in_bfloat16(low)
    return plain, low


def features(model, images):
    with torch.no_grad():
        return model.neck(model.backbone(images))


def test_features_are_near_float32_and_handed_on_as_it(pair) -> None:
    plain, low = pair
    images = torch.rand(2, 3, 64, 64)
    for exact, near in zip(features(plain, images), features(low, images), strict=True):
        assert near.dtype == torch.float32
        assert not torch.equal(exact, near), "nothing was computed in bfloat16"
        assert torch.nn.functional.cosine_similarity(exact.flatten(), near.flatten(), dim=0) > 0.999
    assert {p.dtype for p in low.parameters()} == {torch.float32}
    assert low.state_dict().keys() == plain.state_dict().keys()


def test_a_copy_computes_in_bfloat16_by_itself(pair) -> None:
    _, low = pair
    images = torch.rand(1, 3, 64, 64)
    twin = copy.deepcopy(low)
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.zero_()
    assert all(level.abs().max() > 0 for level in features(twin, images))
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_ends_with_an_error_within(pair) -> None:
    _, low = pair
    with pytest.raises(RuntimeError):
        low.backbone(torch.rand(1, 5, 64, 64))
    assert not torch.is_autocast_enabled("cpu")


def test_yolov8_decodes_boxes_in_float32() -> None:
    """Boxes from the bfloat16 network lie within what its features explain; a bfloat16 decoder would err by pixels."""
    prepare_process(0, 0)
    recipe = protocol.load("mock-v1").recipe("csp_darknet", "yolov8")
    model = new_detector("yolov8", backbones.get("csp_darknet", "n"), 2, recipe)
    model.init_weights()
    precision.compute_in_bfloat16(model)
    model.train()
    levels = model.neck(model.backbone(torch.rand(1, 3, 64, 64)))
    scores, distances, logits = model.bbox_head(levels)
    for level, distance in zip(logits, distances, strict=True):
        assert level.dtype == distance.dtype == torch.float32
        expected = level.double().softmax(-1) @ torch.arange(16, dtype=torch.float64)
        shape = distance.flatten(2).transpose(1, 2)
        assert torch.allclose(shape.reshape(expected.shape).double(), expected, atol=1e-5)
    assert all(score.dtype == torch.float32 for score in scores)
