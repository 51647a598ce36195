"""The moving average of a model's weights, in a few large operations instead of hundreds of small ones."""

from __future__ import annotations

import math

import torch

from baselines import openmmlab

openmmlab.activate()

from mmdet.models.layers import ExpMomentumEMA
from torch import Tensor, nn


class MovingAverage(ExpMomentumEMA):
    """mmdet's exponential moving average of weights and statistics: the same values, all tensors at once.

    One model is averaged for life, in place: its tensors are looked up once.
    """

    _pairs: tuple[list[Tensor], list[Tensor]] | None = None

    def update_parameters(self, model: nn.Module) -> None:
        """Moves the averages towards the model's values; the first call copies them.

        Args:
            model: What was given when this object was made.
        """
        steps = int(self.steps)
        if self._pairs is None:
            state = model.state_dict()
            moving = [name for name, value in self.avg_parameters.items() if value.is_floating_point()]
            self._pairs = [self.avg_parameters[name] for name in moving], [state[name] for name in moving]
        if steps == 0:
            super().update_parameters(model)
            return
        momentum = (1 - self.momentum) * math.exp(-float(1 + steps) / self.gamma) + self.momentum
        torch._foreach_lerp_(*self._pairs, momentum)
        self.steps += 1
