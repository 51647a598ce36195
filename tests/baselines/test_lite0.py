"""EfficientNet-Lite0: timm's features, the package's genuine ImageNet weights, frozen stages of every backbone."""

from __future__ import annotations

import copy

import pytest
import torch
from test_backbones import build

from baselines import openmmlab
from baselines.detectors import count_parameters
from baselines.freezing import freeze_stages
from datasets_builders.errors import UserError

openmmlab.activate()

import timm

ALL = [("csp_darknet", "n"), ("resnet", "18"), ("swin", "nano"), ("lite0", "std")]
# Prefixes of what stages 1 and 2 hold, by family, stem included.
FROZEN = {
    "csp_darknet": ("stem.", "stage1.", "stage2."),
    "resnet": ("conv1.", "bn1.", "layer1.", "layer2."),
    "swin": ("patch_embed.", "stages.0.", "stages.1.", "norm1."),
    "lite0": ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.", "blocks.2."),
}


def test_lite0_gives_the_features_of_timms_network() -> None:
    backbone = build("lite0", "std").backbone.eval()
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4)).eval()
    theirs.load_state_dict(backbone.state_dict())
    images = torch.rand(2, 3, 96, 72)
    with torch.no_grad():
        for mine, expected in zip(backbone(images), theirs(images), strict=True):
            assert torch.equal(mine, expected)


def test_the_detector_on_lite0_stays_small() -> None:
    assert 3e6 < count_parameters(build("lite0", "std")) < 6e6


@pytest.mark.parametrize(("family", "variant"), ALL)
def test_two_frozen_stages_are_exactly_the_lower_ones(family: str, variant: str) -> None:
    torch.manual_seed(0)
    backbone = build(family, variant).backbone
    names = freeze_stages(backbone, family, 2)
    expected = [name for name, _ in backbone.named_parameters() if name.startswith(FROZEN[family])]
    assert list(names) == expected
    before = copy.deepcopy(backbone.state_dict())
    backbone.train()
    sum(feature.mean() for feature in backbone(torch.rand(2, 3, 96, 96))).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (name not in names)
        assert (parameter.grad is None) == (name in names), name
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    # Running statistics of the trained part move, those of the frozen part do not.
    assert not [name for name in changed if name.startswith(FROZEN[family])]
    assert changed or family == "swin"


@pytest.mark.parametrize(("family", "variant"), ALL)
def test_all_stages_can_be_frozen_and_stay_so_in_copies(family: str, variant: str) -> None:
    torch.manual_seed(0)
    backbone = build(family, variant).backbone
    frozen = freeze_stages(backbone, family, 4)
    assert set(frozen) == {name for name, _ in backbone.named_parameters()}
    copied = copy.deepcopy(backbone)
    copied.train()
    backbone.eval()
    images = torch.rand(2, 3, 64, 64)
    for mine, expected in zip(copied(images), backbone(images), strict=True):
        assert torch.equal(mine, expected)
    assert not any(parameter.requires_grad for parameter in copied.parameters())


def test_swins_frozen_set_is_the_one_that_mmdet_freezes() -> None:
    mine = build("swin", "nano").backbone
    frozen = freeze_stages(mine, "swin", 2)
    theirs = build("swin", "nano").backbone
    theirs.frozen_stages = 2
    theirs.train()
    assert set(frozen) == {name for name, p in theirs.named_parameters() if not p.requires_grad}


def test_nothing_is_frozen_unless_asked_for() -> None:
    backbone = build("csp_darknet", "n").backbone
    assert freeze_stages(backbone, "csp_darknet", 0) == ()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(UserError, match="Cannot freeze 5 stages"):
        freeze_stages(backbone, "csp_darknet", 5)
    with pytest.raises(UserError, match="Did you mean 'resnet'"):
        freeze_stages(backbone, "resnet50", 1)
