"""Freezing the lower stages of a backbone, as backbone and detector pretraining do (paper section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

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

    Returns:
        Names of the frozen parameters within the backbone, in order.

    Raises:
        UserError: There is no such family, or it has not so many stages.
    """
    if family not in _PARTS:
        raise unknown_name("backbone", family, _PARTS, see="python -m benchmark list")
    if not 0 <= stages <= STAGES:
        raise UserError(f"Cannot freeze {stages} stages: a backbone has {STAGES} (0 freezes nothing).")
    frozen = _PARTS[family](backbone, stages) if stages else []
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


def _lite0(backbone: Any, stages: int) -> list[nn.Module]:
    # timm's seven groups of blocks end at strides 2, 4, 8, 16, 16, 32, 32.
    return [backbone.conv_stem, backbone.bn1, *backbone.blocks[: (2, 3, 5, 7)[stages - 1]]]


_PARTS: dict[str, Callable[[Any, int], list[nn.Module]]] = {
    "csp_darknet": _csp_darknet,
    "resnet": _resnet,
    "swin": _swin,
    "lite0": _lite0,
}
