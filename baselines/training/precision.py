"""bfloat16 where it is fast and safe: in the convolutions and matrices of a network, never in boxes and losses."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn


def is_bfloat16_fast(device: str) -> bool:
    """Returns whether products in bfloat16 take less time than in float32.

    They do on GPUs from Ampere on, with AMX, and with AVX512-BF16 on AMD's processors. Intel's without AMX have that
    instruction too, and are slower with it than in float32 (docs/protocols.md); other processors must emulate it.

    Args:
        device: `cpu`, or anything else for a GPU.
    """
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    intel = "Intel" in features.get("cpu_name", "")
    return bool(features.get("amx_bf16") or (features.get("avx512_bf16") and not intel))


def resolve(mixed: bool) -> Literal["bf16", "fp32"]:
    """Returns what this machine computes a recipe in: `bf16`, where it is allowed and fast, or `fp32`.

    Args:
        mixed: Whether the recipe allows bfloat16.
    """
    return "bf16" if mixed and is_bfloat16_fast("cuda" if torch.cuda.is_available() else "cpu") else "fp32"


def compute_in_bfloat16(model: nn.Module) -> None:
    """Makes a detector's backbone, neck and the convolutions of YOLOv8's head compute in bfloat16 from now on.

    Weights stay float32, and what these parts hand on is float32 again: eight bits of mantissa are half a pixel of a
    box. Heads other than YOLOv8's compute in float32.

    Args:
        model: A detector from `baselines.detectors.build_detector`.
    """
    parts: list[nn.Module] = [model.get_submodule("backbone"), model.get_submodule("neck")]
    module = (
        getattr(model.get_submodule("bbox_head"), "head_module", None)
        if hasattr(model, "bbox_head")
        else None
    )
    if module is not None:
        parts += [*module.cls_preds, *module.reg_preds]
    for part in parts:
        region = _Region()
        part.register_forward_pre_hook(region.enter)
        # Also after an error: autocast must not outlive the part.
        part.register_forward_hook(region.leave, always_call=True)


class _Region:
    """Autocast around the forward pass of one module."""

    def __init__(self) -> None:
        self._contexts: list[torch.autocast] = []

    def enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        device = next(module.parameters()).device.type
        context = torch.autocast(device, torch.bfloat16)
        context.__enter__()
        self._contexts.append(context)

    def leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        self._contexts.pop().__exit__(None, None, None)
        return _float32(output)


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, (tuple, list)):
        return type(value)(_float32(entry) for entry in value)
    return value
