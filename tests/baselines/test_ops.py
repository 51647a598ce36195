"""RoIAlign, deformable attention and focal loss against literal loops; RoIAlign against the compiled operator."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from baselines import _roi_align, openmmlab

openmmlab.activate()


def bilinear(plane: torch.Tensor, y: float, x: float) -> float:
    """Value between pixel centres at whole numbers; zero where no pixel is near."""
    total = 0.0
    for row, column in itertools.product(
        (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
    ):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            total += float(plane[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def looped_roi_align(
    features: torch.Tensor, rois: torch.Tensor, pooling: _roi_align.Pooling, mode: str
) -> torch.Tensor:
    """RoIAlign sample by sample."""
    height, width = features.shape[2:]
    result = torch.zeros(len(rois), features.shape[1], pooling.height, pooling.width, dtype=torch.float64)
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * pooling.scale - (0.5 if pooling.aligned else 0.0) for c in corners)
        roi_w, roi_h = x2 - x1, y2 - y1
        if not pooling.aligned:
            roi_w, roi_h = max(roi_w, 1.0), max(roi_h, 1.0)
        bin_h, bin_w = roi_h / pooling.height, roi_w / pooling.width
        ratio = pooling.sampling_ratio
        down, across = (ratio, ratio) if ratio > 0 else (math.ceil(bin_h), math.ceil(bin_w))
        for channel, p, q in np.ndindex(*result.shape[1:]):
            samples = []
            for i, j in itertools.product(range(down), range(across)):
                y, x = y1 + (p + (i + 0.5) / down) * bin_h, x1 + (q + (j + 0.5) / across) * bin_w
                inside = -1 <= y <= height and -1 <= x <= width
                place = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
                samples.append(bilinear(features[int(image), channel], *place) if inside else 0.0)
            if mode == "avg":
                result[k, channel, p, q] = sum(samples) / max(len(samples), 1)
            else:
                result[k, channel, p, q] = max(samples, default=-10000.0)
    return result


def made_rois(count: int, images: int, generator: torch.Generator) -> torch.Tensor:
    """Regions inside, across the border, far outside, without size or extent, and larger than the image."""
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30 - 4
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 2 * 24
    size[::5] = 0
    size[1, 0] = size[2, 1] = 0
    corner[3] = 90
    size[4] = 60
    image = torch.randint(images, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + size], dim=1)


POOLINGS = [
    _roi_align.Pooling(scale, height, width, ratio, aligned)
    for scale, (height, width), ratio, aligned in itertools.product(
        (1.0, 0.5), ((2, 3), (1, 1)), (0, 1, 3), (True, False)
    )
]


def pool(features: torch.Tensor, rois: torch.Tensor, pooling: _roi_align.Pooling, mode: str) -> torch.Tensor:
    """RoIAlign through mmcv's public module."""
    from mmcv.ops import RoIAlign

    size = (pooling.height, pooling.width)
    return RoIAlign(size, pooling.scale, pooling.sampling_ratio, mode, pooling.aligned)(features, rois)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_roi_align_is_the_loop_over_samples(pooling: _roi_align.Pooling, mode: str) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 2, 10, 13, generator=generator, dtype=torch.float64)
    rois = made_rois(11, 2, generator)
    torch.testing.assert_close(
        pool(features, rois, pooling, mode), looped_roi_align(features, rois, pooling, mode)
    )


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_gradient_is_the_slope(mode: str, ratio: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(2, 2, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = made_rois(6, 2, generator)
    pooling = _roi_align.Pooling(0.5, 2, 2, ratio, aligned)
    assert gradcheck(lambda f: pool(f, rois, pooling, mode), (features,))


def test_roi_align_in_parts_is_roi_align_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(8)
    features = torch.randn(2, 3, 10, 13, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = made_rois(40, 2, generator)
    pooling = _roi_align.Pooling(0.5, 3, 2, 0, True)
    weight = torch.randn(40, 3, 3, 2, generator=generator, dtype=torch.float64)
    results = []
    for entries in (1, 3000, 1 << 21):
        monkeypatch.setattr(_roi_align, "_WEIGHTS_AT_ONCE", entries)
        pooled = _roi_align.average(features, rois, pooling)
        through_autograd = torch.autograd.grad((pooled * weight).sum(), features)[0]
        direct = _roi_align.average_gradient(weight, features.shape, rois, pooling)
        torch.testing.assert_close(direct, through_autograd)
        results.append((pooled.detach(), direct))
    for part in results[:-1]:
        torch.testing.assert_close(part, results[-1])


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_takes_no_region_and_no_broken_one(mode: str) -> None:
    features = torch.zeros(1, 2, 4, 4, requires_grad=True)
    pooling = _roi_align.Pooling(1.0, 2, 2, 0, True)
    pooled = pool(features, torch.zeros(0, 5), pooling, mode)
    assert pooled.shape == (0, 2, 2, 2)
    pooled.sum().backward()
    assert not features.grad.any()
    for roi in ([0, 3, 0, 1, 2], [0, 0, 3, 2, 1], [0, 0, 0, float("nan"), 1], [0, 0, 0, float("inf"), 1]):
        with pytest.raises(RuntimeError):
            pool(features, torch.tensor([roi], dtype=torch.float32), pooling, mode)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision_rounds_once(mode: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, 2, 10, 13, generator=generator).to(dtype)
    rois = made_rois(11, 2, generator).to(dtype)
    pooling = _roi_align.Pooling(0.5, 2, 3, 0, True)
    pooled = pool(features.requires_grad_(), rois, pooling, mode)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, pool(features.float(), rois.float(), pooling, mode).to(dtype))
    pooled.sum().backward()
    assert features.grad.dtype == dtype
    assert features.grad.isfinite().all()


@pytest.mark.real_data
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_roi_align_equals_the_compiled_operator(
    raw_data: Path, mode: str, aligned: bool, ratio: int, scale: float
) -> None:
    name = f"roi/{mode}_aligned{int(aligned)}_sampling{ratio}_scale{scale}"
    with np.load(raw_data / "compiled_ops_reference.npz", allow_pickle=False) as stored:
        features, rois, expected, expected_gradient = (
            torch.from_numpy(stored[key]) for key in ("roi/feat", "roi/rois", name, f"{name}_grad")
        )
    pooled = pool(features.requires_grad_(), rois, _roi_align.Pooling(scale, 7, 5, ratio, aligned), mode)
    (pooled * torch.arange(pooled.numel()).view_as(pooled).float().cos()).sum().backward()
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features.grad, expected_gradient, rtol=1e-5, atol=5e-6)
    if mode == "max":
        assert torch.equal(pooled, expected)


def attention_inputs(
    dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """Two images, three heads of four channels, two levels stored in reverse, five queries, three points."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.tensor([[3, 4], [2, 5]])
    starts = torch.tensor([10, 0])
    value = torch.randn(2, 22, 3, 4, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, 5, 3, 2, 3, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(2, 5, 3, 2, 3, generator=generator, dtype=torch.float64)
    floats = (tensor.to(device, dtype) for tensor in (value, locations, weights))
    value, locations, weights = floats
    return value, shapes.to(device), starts.to(device), locations, weights


def attend(*inputs: torch.Tensor) -> torch.Tensor:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    return MultiScaleDeformableAttnFunction.apply(*inputs, 64)


def test_deformable_attention_is_the_sum_over_levels_and_points() -> None:
    value, shapes, starts, locations, weights = attention_inputs()
    expected = torch.zeros(2, 5, 3, 4, dtype=torch.float64)
    for b, q, m, level, point in np.ndindex(*locations.shape[:-1]):
        height, width = shapes[level].tolist()
        x, y = locations[b, q, m, level, point].tolist()
        start = int(starts[level])
        for channel in range(4):
            plane = value[b, start : start + height * width, m, channel].view(height, width)
            sample = bilinear(plane, y * height - 0.5, x * width - 0.5)
            expected[b, q, m, channel] += weights[b, q, m, level, point] * sample
    torch.testing.assert_close(attend(value, shapes, starts, locations, weights), expected.flatten(2))


def test_deformable_attention_gradients_are_the_slopes() -> None:
    value, shapes, starts, locations, weights = attention_inputs(seed=2)
    floats = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert gradcheck(lambda v, s, w: attend(v, shapes, starts, s, w), floats)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deformable_attention_in_half_precision_rounds_once(dtype: torch.dtype) -> None:
    inputs = attention_inputs(dtype)
    exact = attend(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs))
    assert torch.equal(attend(*inputs), exact.to(dtype))


def test_deformable_attention_module_runs_alone_and_under_autocast() -> None:
    from mmcv.ops import MultiScaleDeformableAttention

    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(
        embed_dims=16, num_heads=2, num_levels=2, num_points=2, batch_first=True, dropout=0.0
    )
    query, value = torch.randn(2, 3, 16), torch.randn(2, 22, 16)
    levels = {
        "reference_points": torch.rand(2, 3, 2, 2),
        "spatial_shapes": torch.tensor([[3, 4], [2, 5]]),
        "level_start_index": torch.tensor([0, 12]),
    }
    exact = module(query, value=value, **levels)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(query, value=value, **levels)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
    exact.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def focal(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    from mmcv.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(logits, target, 1.7, 0.3, weight, "none")


@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_is_its_equation(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, generator=generator, dtype=torch.float64) * 4
    target = torch.tensor([0, 1, 2, 3, 4, 4, 2, 0, 1])  # 4 is background
    weight = torch.tensor([0.5, 1.5, 2.0, 3.0], dtype=torch.float64) if weighted else None
    expected = torch.zeros_like(logits)
    for row, column in np.ndindex(9, 4):
        p = 1 / (1 + math.exp(-logits[row, column]))
        hit = int(target[row]) == column
        p_t, alpha_t = (p, 0.3) if hit else (1 - p, 0.7)
        factor = float(weight[target[row]]) if weighted and target[row] < 4 else 1.0
        expected[row, column] = -alpha_t * (1 - p_t) ** 1.7 * math.log(p_t) * factor
    torch.testing.assert_close(focal(logits, target, weight), expected)


def test_focal_loss_gradient_is_the_slope() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 1, 0])
    # mmcv scales its gradient by one number, that of the reduced loss.
    assert gradcheck(lambda x: focal(x, target).sum(), (logits.requires_grad_(),))


def test_focal_loss_of_certain_logits_is_finite() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = focal(logits, torch.tensor([0, 0]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert loss[0].sum() == 0 < loss[1].sum()


def test_an_operator_that_is_not_written_names_itself() -> None:
    if openmmlab.describe()["mmcv_ops"] == "compiled":
        pytest.skip("mmcv's compiled extension has all operators")
    from mmcv.ops import soft_nms

    with pytest.raises(NotImplementedError, match=r"'softnms'.*pip install.*onedl-mmcv"):
        soft_nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_on_cuda_is_that_of_the_cpu(mode: str, ratio: int) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 4, 20, 26, generator=generator)
    rois = made_rois(50, 2, generator).float()
    pooling = _roi_align.Pooling(0.5, 7, 7, ratio, True)
    results = []
    for device in ("cpu", "cuda"):
        here = features.to(device, copy=True).requires_grad_()
        pooled = pool(here, rois.to(device), pooling, mode)
        (pooled * pooled).sum().backward()
        results.append((pooled.detach().cpu(), here.grad.cpu()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_own_average_on_cuda_is_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, 4, 20, 26, generator=generator)
    rois = made_rois(50, 2, generator).float()
    pooling = _roi_align.Pooling(0.5, 7, 7, 0, True)
    pooled = _roi_align.average(features, rois, pooling)
    gradient = _roi_align.average_gradient(pooled, features.shape, rois, pooling)
    on_gpu = _roi_align.average(features.cuda(), rois.cuda(), pooling)
    torch.testing.assert_close(on_gpu.cpu(), pooled, rtol=1e-4, atol=1e-5)
    on_gpu = _roi_align.average_gradient(pooled.cuda(), features.shape, rois.cuda(), pooling)
    torch.testing.assert_close(on_gpu.cpu(), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_deformable_attention_and_focal_loss_on_cuda_are_those_of_the_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        value, shapes, starts, locations, weights = attention_inputs(torch.float32, device)
        floats = [tensor.requires_grad_() for tensor in (value, locations, weights)]
        attended = attend(value, shapes, starts, locations, weights)
        gradients = torch.autograd.grad(attended.square().sum(), floats)
        logits = torch.linspace(-5, 5, 12, device=device).view(4, 3).requires_grad_()
        loss = focal(logits, torch.tensor([0, 1, 2, 3], device=device))
        gradients += torch.autograd.grad(loss.sum(), logits)
        results.append([tensor.detach().cpu() for tensor in (attended, loss, *gradients)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
