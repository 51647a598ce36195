"""The optimiser of every training."""

from __future__ import annotations

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from baselines.training.recipes import DetectorTraining, Optimizer


def optim_wrapper(model: nn.Module, recipe: DetectorTraining) -> OptimWrapper:
    """Builds the optimiser of a detector, with gradients clipped."""
    return OptimWrapper(
        build_optimizer(model, recipe.optimizer), clip_grad={"max_norm": recipe.clip_grad_norm}
    )


def build_optimizer(model: nn.Module, recipe: Optimizer) -> torch.optim.Optimizer:
    """Builds the optimiser: every trainable parameter exactly once, in the three groups of YOLO's recipe.

    Weights of convolutions and linear layers decay; norms and other tables (Swin's relative positions) do not; biases
    do not and warm up from their own rate. mmyolo's own grouping leaves tables out of the optimiser altogether.
    """
    weights, others, biases = [], [], []
    norms = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("bias"):
            biases.append(parameter)
        elif id(parameter) in norms or not name.endswith("weight"):
            others.append(parameter)
        else:
            weights.append(parameter)
    settings = recipe.model_dump(exclude_none=True)
    kind, decay = settings.pop("type"), settings.pop("weight_decay")
    return getattr(torch.optim, kind)(
        [
            {"params": weights, "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
            {"params": biases, "weight_decay": 0.0},
        ],
        **settings,
    )


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
