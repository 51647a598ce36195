"""Swin Transformer's names: Microsoft's and timm's, and mmdet's, which are ours.

Both merge 2x2 patches in the order (row, column) = (0,0), (1,0), (0,1), (1,1), each with all its features; mmdet's
unfolding puts the four patches, row by row, inside each feature. timm counts a merging to the stage after it,
Microsoft and mmdet to the stage before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Ours and the others', of one block.
_BLOCK = ((".attn.w_msa.", ".attn."), (".ffn.layers.0.0.", ".mlp.fc1."), (".ffn.layers.1.", ".mlp.fc2."))


def read(state: dict[str, Tensor], *, merging_after: bool) -> dict[str, Tensor]:
    """Returns the tensors under mmdet's names.

    Args:
        state: Under Microsoft's or timm's names.
        merging_after: Whether stage n holds the merging that follows it (Microsoft), not the one before (timm).
    """
    state = {re.sub(r"^layers_(\d+)", r"layers.\1", name): value for name, value in state.items()}
    stages = [int(found[1]) for found in (re.match(r"layers\.(\d+)\.", name) for name in state) if found]
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        merging = re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name)
        if merging:
            stage = int(merging[1]) - (not merging_after)
            ours[f"stages.{stage}.downsample.{merging[2]}"] = _to_our_order(value)
        elif name.startswith("layers."):
            new = name.replace("layers.", "stages.", 1)
            for our, their in _BLOCK:
                new = new.replace(their, our)
            ours[new] = value
        elif name.startswith("patch_embed.proj."):
            ours[name.replace(".proj.", ".projection.")] = value
        elif name.startswith("norm."):
            ours[f"norm{max(stages, default=0)}.{name.removeprefix('norm.')}"] = value
        else:
            ours[name] = value
    return ours


def write(ours: dict[str, Tensor], *, merging_after: bool) -> dict[str, Tensor]:
    """Undoes `read`; the norms of the lower outputs, which only mmdet has, are left out.

    Returns:
        Nothing where this is no Swin.
    """
    stages = [int(found[1]) for found in (re.match(r"stages\.(\d+)\.", name) for name in ours) if found]
    if "patch_embed.projection.weight" not in ours or not stages:
        return {}
    theirs: dict[str, Tensor] = {}
    for name, value in ours.items():
        merging = re.fullmatch(r"stages\.(\d+)\.downsample\.(.+)", name)
        norm = re.fullmatch(r"norm(\d+)\.(.+)", name)
        if merging:
            stage = int(merging[1]) + (not merging_after)
            theirs[f"layers.{stage}.downsample.{merging[2]}"] = _to_their_order(value)
        elif norm:
            if int(norm[1]) == max(stages):
                theirs[f"norm.{norm[2]}"] = value
        else:
            new = name.replace("stages.", "layers.", 1).replace(
                "patch_embed.projection.", "patch_embed.proj."
            )
            for our, their in _BLOCK:
                new = new.replace(our, their)
            theirs[new] = value
    return theirs


def resize_table(table: Tensor, entries: int) -> Tensor | None:
    """Resizes a table of relative position biases to another window, as mmdet does: bicubic.

    Args:
        table: (L, heads); L is the square of (2 * window - 1).
        entries: L of the other window.

    Returns:
        (entries, heads), or None where one of the two is no such square.
    """
    from torch.nn.functional import interpolate

    length, heads = table.shape
    old, new = round(length**0.5), round(entries**0.5)
    if old * old != length or new * new != entries:
        return None
    square = table.T.reshape(1, heads, old, old)
    return interpolate(square, size=(new, new), mode="bicubic").view(heads, entries).T.contiguous()


def _to_our_order(value: Tensor) -> Tensor:
    *rows, width = value.shape
    if width % 4:
        return value
    split = value.reshape(*rows, 2, 2, width // 4)  # column, row, feature
    return split.movedim(-1, -3).transpose(-1, -2).reshape(value.shape)


def _to_their_order(value: Tensor) -> Tensor:
    *rows, width = value.shape
    split = value.reshape(*rows, width // 4, 2, 2)  # feature, row, column
    return split.transpose(-1, -2).movedim(-3, -1).reshape(value.shape)
