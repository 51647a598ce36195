"""Freezing the lower stages of a backbone, as backbone and detector pretraining do (paper section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from baselines import backbones
from datasets_builders.errors import UserError, unknown_name

STAGES = 4


def freeze_stages(backbone: nn.Module, family: str, stages: int) -> tuple[str, ...]:
    """Freezes a backbone from its input up.

    Frozen parts get no gradients, and compute in evaluation mode whatever `train()` says: their batch norms use
    and keep their running statistics, their stochastic depth is off. That holds for copies of the module too.

    Args:
        backbone: The backbone of a detector or of a pretraining model.
        family: Its name in `backbones.yaml`.
        stages: 0 freezes nothing; n freezes stem (or patch embedding) and the stages up to stride `2 ** (n + 1)`
            (CSPDarknet's stages 1 to n, ResNet's layers 1 to n, Swin's stages 0 to n - 1 with their output norms).
            A class of this project's own says itself what they are, by its method `lower_stages(n)`.

    Returns:
        Names of the frozen parameters within the backbone, in order.

    Raises:
        UserError: There is no such family, it has not so many stages, or its class does not say what they are.
    """
    if family not in backbones.names():
        raise unknown_name("backbone", family, backbones.names(), see="python -m benchmark list")
    if not 0 <= stages <= STAGES:
        raise UserError(f"Cannot freeze {stages} stages: a backbone has {STAGES} (0 freezes nothing).")
    frozen = _parts(backbone, family, stages) if stages else []
    for part in frozen:
        part.requires_grad_(False)
        part.eval()
        part.register_forward_pre_hook(_stay_in_evaluation)
    inside = {id(parameter) for part in frozen for parameter in part.parameters()}
    return tuple(name for name, parameter in backbone.named_parameters() if id(parameter) in inside)


def _stay_in_evaluation(module: nn.Module, inputs: Any) -> None:
    """Undoes `train()` before each use. A function of this module, so that copying and pickling keep it."""
    module.eval()


def _csp_darknet(backbone: Any, stages: int) -> list[nn.Module]:
    return [backbone.stem, *(getattr(backbone, f"stage{n}") for n in range(1, stages + 1))]


def _resnet(backbone: Any, stages: int) -> list[nn.Module]:
    return [backbone.conv1, backbone.bn1, *(getattr(backbone, f"layer{n}") for n in range(1, stages + 1))]


def _swin(backbone: Any, stages: int) -> list[nn.Module]:
    norms = [getattr(backbone, f"norm{n}", None) for n in range(stages)]
    return [backbone.patch_embed, *backbone.stages[:stages], *(norm for norm in norms if norm is not None)]


def _parts(backbone: Any, family: str, stages: int) -> list[nn.Module]:
    if family in _PARTS:
        return _PARTS[family](backbone, stages)
    if not hasattr(backbone, "lower_stages"):
        raise UserError(
            f"Cannot freeze stages of {family}: its class has no method lower_stages. See: docs/extending.md"
        )
    return list(backbone.lower_stages(stages))


_PARTS: dict[str, Callable[[Any, int], list[nn.Module]]] = {
    "csp_darknet": _csp_darknet,
    "resnet": _resnet,
    "swin": _swin,
}
"""Families whose classes are other libraries'."""
