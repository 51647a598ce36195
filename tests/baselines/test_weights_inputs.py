"""Folding another input convention into the first convolution, against networks that normalise their input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backbones import build
from torch import Tensor, nn

from baselines.weights.inputs import InputConvention, adapt, convention
from datasets_builders.errors import UserError

IMAGES = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def normalised(images: Tensor, trained_on: InputConvention) -> Tensor:
    """What the network was trained to see of RGB images in [0, 1]."""
    images = images.flip(1) if trained_on.bgr else images
    return (images - torch.tensor(trained_on.mean).view(3, 1, 1)) / torch.tensor(trained_on.std).view(3, 1, 1)


def adapted(backbone: nn.Module, trained_on: InputConvention) -> dict[str, Tensor]:
    state = {f"backbone.{name}": value.clone() for name, value in backbone.state_dict().items()}
    changed = adapt(state, trained_on)
    return {name.removeprefix("backbone."): value for name, value in changed.items()}


@pytest.mark.parametrize("name", ["imagenet", "tf_lite", "caffe"])
def test_patch_embeddings_are_exact_everywhere(name: str) -> None:
    torch.manual_seed(0)
    backbone = build("swin", "nano").eval().backbone
    with torch.no_grad():
        expected = backbone(normalised(IMAGES, convention(name)))
        backbone.load_state_dict(adapted(backbone, convention(name)))
        for mine, theirs in zip(backbone(IMAGES), expected, strict=True):
            assert torch.allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["imagenet", "tf_lite", "caffe"])
@pytest.mark.parametrize(
    ("family", "variant", "first", "norm"),
    [
        ("resnet", "18", "conv1", "bn1"),
        ("csp_darknet", "n", "stem.conv", "stem.bn"),
        ("lite0", "std", "conv_stem", "bn1"),
    ],
)
def test_convolutions_are_exact_inside_and_bounded_at_the_border(
    family: str, variant: str, first: str, norm: str, name: str
) -> None:
    torch.manual_seed(0)
    trained_on = convention(name)
    backbone = build(family, variant).eval().backbone
    conv, bn = backbone.get_submodule(first), backbone.get_submodule(norm)
    stem = nn.Sequential(conv, nn.BatchNorm2d(bn.num_features, eps=bn.eps)).eval()
    stem[1].load_state_dict(bn.state_dict())
    stem[1].running_var.copy_(0.5 + torch.rand(bn.num_features))
    with torch.no_grad():
        expected = stem(normalised(IMAGES, trained_on))
        weight = conv.weight.detach().clone()
        state = {f"backbone.{first}.weight": weight}
        state |= {f"backbone.{norm}.{n}": v for n, v in stem[1].state_dict().items()}
        changed = adapt(state, trained_on)
        conv.weight.copy_(changed[f"backbone.{first}.weight"])
        stem[1].running_mean.copy_(changed[f"backbone.{norm}.running_mean"])
        difference = (stem(IMAGES) - expected).abs()
    inside = slice(4, -4)
    assert difference[..., inside, inside].max() < 1e-4 * max(1.0, float(expected.abs().max()))
    # No filter misses more than all of its taps.
    per_channel = (
        weight.abs() * (torch.tensor(trained_on.mean) / torch.tensor(trained_on.std)).view(1, 3, 1, 1)
    ).sum((1, 2, 3))
    bound = per_channel * (stem[1].weight.abs() / (stem[1].running_var + stem[1].eps).sqrt())
    assert (difference.amax((0, 2, 3)) <= bound + 1e-4).all()
    assert difference.max() > 1e-3  # the border is there


def test_in_training_mode_the_shift_cancels() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, bias=False)
    bn = nn.BatchNorm2d(8).train()
    expected = bn(conv(normalised(IMAGES, convention("imagenet"))))
    state = {"backbone.conv1.weight": conv.weight, "backbone.bn1.running_mean": torch.zeros(8)}
    changed = adapt(state, convention("imagenet"))
    mine = bn(torch.conv2d(IMAGES, changed["backbone.conv1.weight"]))
    assert torch.allclose(mine, expected, atol=1e-4)


numbers = st.floats(0.01, 2)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[numbers] * 3), st.tuples(*[numbers] * 3), st.booleans(), st.integers(0, 2**31))
def test_any_convention_folds_into_a_convolution_with_bias(mean, std, bgr, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    trained_on = InputConvention("any", mean, std, bgr)
    weight, bias = torch.randn(4, 3, 2, 2, generator=generator), torch.randn(4, generator=generator)
    expected = torch.conv2d(normalised(IMAGES[:, :, :8, :8], trained_on), weight, bias, stride=2)
    name = "backbone.patch_embed.projection"
    changed = adapt({f"{name}.weight": weight, f"{name}.bias": bias}, trained_on)
    mine = torch.conv2d(IMAGES[:, :, :8, :8], changed[f"{name}.weight"], changed[f"{name}.bias"], stride=2)
    assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_our_own_convention_changes_nothing() -> None:
    state = {"anything": torch.rand(3)}
    assert adapt(state, convention("unit")) is state


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(UserError, match="no first convolution"):
        adapt({"backbone.x": torch.rand(1)}, convention("imagenet"))
    with pytest.raises(UserError, match=r"not backbone\.bn1\.running_mean"):
        adapt({"backbone.conv1.weight": torch.rand(8, 3, 3, 3)}, convention("imagenet"))
    with pytest.raises(UserError, match="3 channels"):
        adapt({"backbone.conv1.weight": torch.rand(8, 1, 3, 3)}, convention("imagenet"))
    with pytest.raises(UserError, match="Did you mean 'imagenet'"):
        convention("imagent")
