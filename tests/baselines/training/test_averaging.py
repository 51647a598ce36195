"""The moving average against mmdet's own loop."""

from __future__ import annotations

import torch
from torch import nn

from baselines.training.averaging import MovingAverage

from mmdet.models.layers import ExpMomentumEMA  # isort: skip - after the operators are in place


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_averages_are_those_of_mmdet_bit_for_bit() -> None:
    model = _model(0).to(memory_format=torch.channels_last)
    ours, theirs = (
        kind(model, momentum=0.005, gamma=10, update_buffers=True) for kind in (MovingAverage, ExpMomentumEMA)
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(6):
        model(torch.randn(2, 3, 8, 8))  # moves the statistics, counts batches
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert ours.steps == theirs.steps == step + 1
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert not torch.equal(ours.module[0].weight, start["0.weight"])
    assert not torch.equal(ours.module[0].weight, model[0].weight)


def test_a_restored_average_goes_on_where_it_was() -> None:
    model = _model(0)
    whole, first = (MovingAverage(model, momentum=0.01, gamma=5, update_buffers=True) for _ in range(2))
    for average in (whole, first):
        average.update_parameters(model)
    second = MovingAverage(_model(1), momentum=0.01, gamma=5, update_buffers=True)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        model[0].weight.mul_(2)
    whole.update_parameters(model)
    second.update_parameters(model)
    assert torch.equal(whole.module[0].weight, second.module[0].weight)
    assert whole.steps == second.steps == 2
