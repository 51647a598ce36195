"""Distillation: losses equal a literal version, attention converges to a planted map, and the weight balances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.optim import OptimWrapper
from torch import nn

from agssp.distillation import AnomalyGuided, attention, caught_features, distillation_loss
from agssp.recipes import Distillation


def literal_attention(feature: np.ndarray) -> np.ndarray:
    channels, height, width = feature.shape
    result = np.zeros((height, width))
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                result[i, j] += feature[c, i, j] ** 2
    return result


def literal_resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each cell is the mean of the pixels it covers; sizes divide."""
    rows, columns = values.shape[0] // height, values.shape[1] // width
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            result[i, j] = values[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean()
    return result


def literal_loss(layers: list[np.ndarray], maps: np.ndarray, loss: str) -> float:
    per_image = []
    for n in range(len(maps)):
        if maps[n].max() == 0:
            continue
        per_layer = []
        for layer in layers:
            a = literal_attention(layer[n])
            m = literal_resized(maps[n], *a.shape)
            a, m = a.reshape(-1), m.reshape(-1)
            if loss == "cosine":
                per_layer.append(2 - 2 * (a @ m) / math.sqrt((a @ a) * (m @ m)))
            else:
                per_layer.append((((a / a.max()) - (m / m.max())) ** 2).mean())
        per_image.append(sum(per_layer) / len(per_layer))
    return sum(per_image) / len(per_image) if per_image else 0.0


@given(seed=st.integers(0, 2**16), loss=st.sampled_from(["cosine", "l2"]), layers=st.integers(1, 3))
@settings(max_examples=20)
def test_losses_equal_a_literal_version(seed: int, loss: str, layers: int) -> None:
    rng = np.random.default_rng(seed)
    features = [rng.normal(size=(3, 4 + i, 2 ** (3 - i), 2 ** (4 - i))) for i in range(layers)]
    maps = rng.random((3, 32, 32)) * rng.integers(0, 2, (3, 1, 1)) * 2
    computed = distillation_loss(
        [torch.from_numpy(f).float() for f in features], torch.from_numpy(maps).float(), loss
    )
    assert float(computed) == pytest.approx(literal_loss(features, maps, loss), abs=1e-5)


def test_attention_is_the_sum_of_squares() -> None:
    features = torch.randn(2, 5, 3, 4)
    expected = np.stack([literal_attention(f) for f in features.numpy()])
    np.testing.assert_allclose(attention(features).numpy(), expected, rtol=1e-5)
    assert attention(features.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("loss", ["cosine", "l2"])
def test_maps_that_say_nothing_change_nothing(loss: str) -> None:
    features = [torch.randn(3, 4, 8, 8, requires_grad=True)]
    maps = torch.rand(3, 32, 32)
    maps[1] = 0
    some = distillation_loss(features, maps, loss)
    only = distillation_loss([features[0][[0, 2]]], maps[[0, 2]], loss)
    assert some.item() == pytest.approx(only.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(some, features)
    assert torch.isfinite(gradient).all()
    assert not gradient[1].any()
    none = distillation_loss(features, torch.zeros(3, 32, 32), loss)
    assert none.item() == 0
    assert not torch.autograd.grad(none, features)[0].any()


@pytest.mark.parametrize("loss", ["cosine", "l2"])
def test_features_of_zeros_and_level_maps_give_numbers(loss: str) -> None:
    dead = torch.zeros(2, 4, 8, 8, requires_grad=True)
    value = distillation_loss([dead], torch.rand(2, 32, 32) + 0.1, loss)
    assert math.isfinite(float(value))
    assert torch.isfinite(torch.autograd.grad(value, [dead])[0]).all()
    level = torch.full((2, 32, 32), 0.5)
    assert float(distillation_loss([torch.ones(2, 4, 8, 8)], level, loss)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("loss", "scale"), [("cosine", 7.0), ("l2", 0.3)])
def test_only_the_shape_of_attention_counts(loss: str, scale: float) -> None:
    features, maps = torch.randn(2, 4, 8, 8), torch.rand(2, 32, 32)
    one = distillation_loss([features], maps, loss)
    assert float(distillation_loss([features * scale], maps, loss)) == pytest.approx(float(one), rel=1e-4)


def planted() -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    centres = ((8, 20), (24, 6), (16, 16), (5, 5))
    return torch.stack([0.05 + torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 40) for a, b in centres])


class TwoStages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Conv2d(3, 8, 3, padding=1)
        self.upper = nn.Conv2d(8, 16, 3, padding=1, stride=2)

    def forward(self, images):
        low = self.lower(images).relu()
        return low, self.upper(low).relu()


class Toy(nn.Module):
    """A backbone of two stages, and a task that does not depend on it."""

    hides_pixels = False

    def __init__(self, task: float = 3.0) -> None:
        super().__init__()
        self.student = TwoStages()
        self.task = nn.Parameter(torch.tensor(task))

    def task_loss(self, views, labels, masks):
        self.student(views[0])
        return self.task.abs()


@pytest.mark.parametrize("loss", ["cosine", "l2"])
def test_attention_converges_to_a_planted_map(loss: str) -> None:
    torch.manual_seed(0)
    maps = planted()
    noise = torch.rand(4, 3, 32, 32)
    # The images show the planted place in their values, as a defect does.
    images = ((0.3 * noise + 0.7 * maps[:, None].clamp(max=1)) * 255).to(torch.uint8)
    model = AnomalyGuided(Toy(), Distillation(loss=loss, stages=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model([images], torch.zeros(4), maps=maps)["loss"].backward()
        optimizer.step()
    with caught_features(model.task.student, 1) as passes, torch.no_grad():
        model.task.student(images / 255)
    found = attention(passes[0][0]).flatten(1)
    target = nn.functional.adaptive_avg_pool2d(maps[:, None], 16).flatten(1)
    assert torch.cosine_similarity(found, target).min() > 0.95


def test_the_first_iteration_makes_both_losses_equal_and_later_ones_keep_the_weight() -> None:
    torch.manual_seed(0)
    model = AnomalyGuided(Toy(), Distillation(loss="cosine", stages=2))
    images, maps = [torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)], planted()
    first = model(images, torch.zeros(4), maps=maps)
    assert float(model.weight * first["loss_distill"]) == pytest.approx(float(first["loss_task"]), rel=1e-6)
    assert float(first["loss"]) == pytest.approx(2 * float(first["loss_task"]), rel=1e-6)
    weight = float(model.weight)
    second = model(images, torch.zeros(4), maps=maps.flip(1))
    assert float(model.weight) == weight
    assert float(second["loss"]) == pytest.approx(
        float(second["loss_task"] + weight * second["loss_distill"]), rel=1e-6
    )
    # A checkpoint brings the weight along.
    again = AnomalyGuided(Toy(9.0), Distillation(loss="cosine", stages=2))
    again.load_state_dict(model.state_dict())
    again(images, torch.zeros(4), maps=maps)
    assert float(again.weight) == weight


def test_the_weight_waits_for_a_map_that_says_something() -> None:
    model = AnomalyGuided(Toy(), Distillation(loss="cosine", stages=1))
    images = [torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)]
    silent = model(images, torch.zeros(4), maps=torch.zeros(4, 32, 32))
    assert float(silent["loss"]) == float(silent["loss_task"])
    model(images, torch.zeros(4), maps=planted())
    assert float(model.weight) > 0


def test_a_fixed_weight_is_used_as_given() -> None:
    model = AnomalyGuided(Toy(), Distillation(loss="l2", stages=1, weight=0.25))
    losses = model([torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)], torch.zeros(4), maps=planted())
    assert float(losses["loss"]) == pytest.approx(
        float(losses["loss_task"] + 0.25 * losses["loss_distill"]), rel=1e-6
    )


def test_the_curve_holds_both_losses_and_the_step_takes_their_sum_once() -> None:
    model = AnomalyGuided(Toy(), Distillation(loss="cosine", stages=1))
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    batch = {
        "views": [torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)],
        "labels": torch.zeros(4),
        "maps": planted(),
    }
    logged = model.train_step(batch, optimizer)
    assert set(logged) == {"loss_task", "loss_distill", "loss"}
    assert float(logged["loss"]) == pytest.approx(2 * float(logged["loss_task"]), rel=1e-5)
    # The task's parameter gets the gradient of the task alone, once.
    assert float(model.task.task) == pytest.approx(3.0 - 1.0)


class TestCaughtFeatures:
    def test_swin_is_caught_before_its_norms(self) -> None:
        from baselines import backbones
        from baselines.pretraining import build_backbone

        torch.manual_seed(0)
        swin = build_backbone(backbones.get("swin", "nano"))
        swin.eval()
        with caught_features(swin, 2) as passes, torch.no_grad():
            outputs = swin(torch.rand(2, 3, 64, 96))
        assert [f.shape for f in passes[0]] == [o.shape for o in outputs[1:]]
        for index, feature, output in zip((2, 3), passes[0], outputs[1:], strict=True):
            tokens = getattr(swin, f"norm{index}")(feature.flatten(2).transpose(1, 2))
            torch.testing.assert_close(tokens.transpose(1, 2).reshape(output.shape), output)
            # Behind the norm nothing could be seen; before it there is.
            flat, alive = attention(output), attention(feature)
            assert (flat.std() / flat.mean()) < 0.1 * (alive.std() / alive.mean())

    @pytest.mark.parametrize(
        ("family", "variant"), [("csp_darknet", "n"), ("resnet", "18"), ("lite0", "std")]
    )
    def test_networks_of_convolutions_are_caught_as_they_answer(self, family: str, variant: str) -> None:
        from baselines import backbones
        from baselines.pretraining import build_backbone

        backbone = build_backbone(backbones.get(family, variant))
        backbone.eval()
        with caught_features(backbone, 2) as passes, torch.no_grad():
            outputs = [backbone(torch.rand(1, 3, 64, 64)), backbone(torch.rand(1, 3, 64, 64))]
        assert len(passes) == 2
        for caught, output in zip(passes, outputs, strict=True):
            assert all(a is b for a, b in zip(caught, output[1:], strict=True))
        backbone(torch.rand(1, 3, 64, 64))
        assert len(passes) == 2, "nothing is caught outside the context"
