"""Batches of training images: windows, most of them on a defect, with changes of geometry, light and sharpness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from agssp.tiny_clip.scenes import DEFECTS, Examples, surfaces

_LEAST_PIXELS = 12
"""A window shows a defect where it holds at least this many of its pixels."""


@dataclass(frozen=True)
class Batch:
    """What one step sees: a square window of w by w patches of each image.

    Attributes:
        images: (B, 3, w * patch, w * patch) float32, normalised.
        places: (B, w * w) int64, where the window's patches lie on the encoder's grid.
        cover: (B, w * w), the share of each patch that is defective.
        kinds: (B, w * w) int64, index in `DEFECTS` of a defect in the patch, or -1.
        shown: Per image, the indices in `DEFECTS` of what the window shows.
        surfaces: Per image, its surface.
    """

    images: Tensor
    places: Tensor
    cover: Tensor
    kinds: Tensor
    shown: list[list[int]]
    surfaces: list[str]


def draw_batch(
    examples: Examples, settings: Mapping[str, Any], count: int, window: int, generator: torch.Generator
) -> Batch:
    """Draws windows of images, most of them on a defect, and changes them: turn, zoom, light, colour, blur, noise.

    Args:
        examples: All training images.
        settings: The recipe.
        count: B.
        window: w.
        generator: All that is random.
    """
    vision = settings["model"]["vision_cfg"]
    size, patch = vision["image_size"], vision["patch_size"]
    side = size // patch

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand((count, *shape), generator=generator) * (high - low) + low

    def some(share: float) -> Tensor:
        return uniform(0, 1, 1, 1, 1) < share

    chosen = torch.randint(len(examples), (count,), generator=generator).numpy()
    # One affine map each: a quarter turn, a flip, a zoom, a shift.
    turn = torch.randint(4, (count,), generator=generator) * (torch.pi / 2)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zoom = torch.where(uniform(0, 1) < 0.5, 1.0, uniform(0.55, 1.25))
    shift = uniform(-1, 1, 2, 1) * (1 - zoom).clamp(min=0).view(-1, 1, 1)
    sine, cosine = torch.sin(turn) * zoom, torch.cos(turn) * zoom
    linear = torch.stack([torch.stack([cosine * flip, -sine], 1), torch.stack([sine * flip, cosine], 1)], 1)
    grid = F.affine_grid(torch.cat([linear, shift], 2), [count, 1, size, size], align_corners=False)
    kinds = torch.from_numpy(examples.kinds[chosen]).float()[:, None]
    kinds = F.grid_sample(kinds, grid, mode="nearest", padding_mode="reflection", align_corners=False)

    # The window's first row and column of patches: around a defective patch where there is one, or anywhere.
    weight = F.max_pool2d(kinds, patch).flatten(1).clamp(max=1) * (uniform(0, 1, 1) < 0.7) + 1e-6
    centre = torch.multinomial(weight, 1, generator=generator)
    first = torch.cat([centre // side, centre % side], 1) - torch.randint(
        window, (count, 2), generator=generator
    )
    first = first.clamp(0, side - window)
    step = torch.arange(window)
    places = ((first[:, :1] + step)[:, :, None] * side + (first[:, 1:] + step)[:, None, :]).flatten(1)
    cuts = [(slice(r, r + window * patch), slice(c, c + window * patch)) for r, c in (first * patch).tolist()]
    grid = torch.stack([one[cut] for one, cut in zip(grid, cuts, strict=True)])
    kinds = torch.stack([one[:, cut[0], cut[1]] for one, cut in zip(kinds, cuts, strict=True)])

    images = torch.from_numpy(examples.images[chosen]).permute(0, 3, 1, 2).float() / 255
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    images = torch.where(some(0.25), F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), images)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * uniform(0.6, 1.6, 1, 1, 1) + mean * uniform(0.7, 1.4, 1, 1, 1)
    images = torch.where(some(0.4), images.mean(dim=1, keepdim=True), images * uniform(0.95, 1.05, 3, 1, 1))
    noise = torch.randn(count, 1, *images.shape[2:], generator=generator) * uniform(0, 0.05, 1, 1, 1)
    images = ((images + noise * some(0.4)).clamp(0, 1) * 255).round() / 255
    mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std"))

    present = (kinds.flatten(1).long()[:, :, None] == torch.arange(1, len(DEFECTS) + 1)).sum(
        1
    ) >= _LEAST_PIXELS
    return Batch(
        (images - mean) / std,
        places,
        F.avg_pool2d((kinds > 0).float(), patch).flatten(1),
        F.max_pool2d(kinds, patch).flatten(1).long() - 1,
        [row.nonzero().flatten().tolist() for row in present],
        [surfaces()[index] for index in examples.surfaces[chosen]],
    )
