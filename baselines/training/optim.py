"""The optimiser of every training."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from baselines.training.recipes import DetectorTraining, Optimizer


def optim_wrapper(model: nn.Module, recipe: DetectorTraining) -> OptimWrapper:
    """Builds the optimiser of a detector, with gradients clipped where the recipe says so."""
    clip = None if recipe.clip_grad_norm is None else {"max_norm": recipe.clip_grad_norm}
    return OptimWrapper(build_optimizer(model, recipe.optimizer), clip_grad=clip)


def build_optimizer(model: nn.Module, recipe: Optimizer) -> torch.optim.Optimizer:
    """Builds the optimiser: every trainable parameter exactly once, in the three groups of YOLO's recipe.

    Weights of convolutions and linear layers decay; norms and other tables (Swin's relative positions) do not; biases
    do not and warm up from their own rate. mmyolo's own grouping leaves tables out of the optimiser altogether.
    With a `backbone_factor` the backbone has three such groups of its own, after the others, with its own rate.
    """
    norms = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    settings = recipe.model_dump(exclude_none=True)
    kind, decay = settings.pop("type"), settings.pop("weight_decay")
    factor = settings.pop("backbone_factor", None)
    if factor is None:
        groups = _groups(trainable, norms, decay)
    else:
        lower = [entry for entry in trainable if entry[0].startswith("backbone.")]
        upper = [entry for entry in trainable if not entry[0].startswith("backbone.")]
        slower = {"lr": factor * recipe.lr}
        groups = _groups(upper, norms, decay) + [group | slower for group in _groups(lower, norms, decay)]
    # One operation for all parameters of a group.
    return getattr(torch.optim, kind)(groups, fused=True, **settings)


def _groups(named: list[tuple[str, nn.Parameter]], norms: set[int], decay: float) -> list[dict[str, Any]]:
    """Sorts parameters into weights, others and biases."""
    weights, others, biases = [], [], []
    for name, parameter in named:
        if name.endswith("bias"):
            biases.append(parameter)
        elif id(parameter) in norms or not name.endswith("weight"):
            others.append(parameter)
        else:
            weights.append(parameter)
    return [
        {"params": weights, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
        {"params": biases, "weight_decay": 0.0},
    ]


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
