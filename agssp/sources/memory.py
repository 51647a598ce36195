"""Few-shot nearest-neighbour memory on ImageNet features: maps without CLIP and without a download.

The idea is PatchCore's (Roth et al., 2022): a patch is anomalous when no patch of the normal images resembles it. With
a few normal images there is nothing to thin out, so the memory is all their patches. anomalib has a PatchCore, but only
as a Lightning module with its data and training classes, 25 further packages; what is needed of it is this page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor, nn

from agssp.kead.scoring import nearest_distance
from agssp.map_inputs import MapInput
from agssp.map_sources import AnomalyMaps, MapSource
from baselines import openmmlab, weights
from datasets_builders.errors import UserError

openmmlab.activate()

SIZE = 224
"""Side of the input in pixels; the grid is that of stride 8."""
GRID = SIZE // 8
NEAR = 2
"""Patches up to so many cells apart share what they see, and do not count as each other's likeness."""
USUAL = 0.99
"""Share of a normal image's patches whose distance counts as usual."""


@dataclass(frozen=True)
class Memory:
    """What is kept of a category.

    Attributes:
        patches: (k * GRID * GRID, D) normalised features of all patches of its normal images.
        usual: Distance from a patch of a normal image to the rest of the memory that few of them exceed.
    """

    patches: Tensor
    usual: float


class MemorySource(MapSource):
    """Distance to the nearest normal patch, in EfficientNet-Lite0's features at strides 8 and 16.

    Half the cosine distance d becomes d / (d + u), where u is the category's usual distance: 0 is a normal patch
    again, 1/2 the edge of what is usual, 1 the limit. So one margin and one threshold mean the same in all
    categories. The image's score is the map's maximum.
    """

    name = "memory:lite0"
    needs_normals = True

    def __init__(self, device: str = "cpu") -> None:
        """Loads the network.

        Args:
            device: Of torch.

        Raises:
            UserError: The package with the weights is not installed.
        """
        from baselines.lite0 import Lite0

        if device != "cpu" and not torch.cuda.is_available():
            raise UserError(f"Device {device!r} is not at hand: torch sees no GPU. Use cpu.")
        self.device = device
        self.batch_size = 8 if device == "cpu" else 64
        model = nn.ModuleDict({"backbone": Lite0()})
        self._weights = weights.load(model, weights.resolve("imagenet-lite0")).sha256
        self._network = model["backbone"].eval().requires_grad_(False).to(device)

    def identity(self) -> dict[str, Any]:
        return {
            "method": "memory",
            "network": "lite0",
            "weights": self._weights,
            "size": SIZE,
            "near": NEAR,
            "usual": USUAL,
        }

    @torch.inference_mode()
    def fit(self, category: str, normals: Sequence[NDArray[np.uint8]]) -> Memory:
        if not normals:
            raise UserError(f"{self.name} needs normal images: give --shots 1 or more.")
        patches = torch.cat([self._patches(self._features([image])) for image in normals])
        return Memory(patches.flatten(0, 1), _usual_distance(patches))

    @torch.inference_mode()
    def score(self, batch: Sequence[MapInput], model: Memory) -> AnomalyMaps:
        patches = self._patches(self._features([one.image for one in batch]))
        distances = nearest_distance(patches, model.patches)
        maps = (distances / (distances + model.usual)).unflatten(1, (GRID, GRID)).cpu().numpy()
        return AnomalyMaps(maps, maps.max(axis=(1, 2)))

    def rate(self, category: str, batch: Sequence[MapInput]) -> None:
        """It knows nothing of defects."""

    @torch.inference_mode()
    def embed(self, batch: Sequence[MapInput]) -> NDArray[np.float32]:
        """Returns the mean of the features over each image."""
        features = self._features([one.image for one in batch])
        means = torch.cat([level.mean(dim=(2, 3)) for level in features], dim=1)
        return F.normalize(means, dim=1).cpu().numpy()

    def _features(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """Returns the features of images at strides 8 and 16, (N, C, h, w) each."""
        pixels = torch.empty(len(images), 3, SIZE, SIZE)
        for place, image in enumerate(images):
            one = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
            resized = F.interpolate(one, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
            pixels[place] = resized[0] / 255
        return list(self._network(pixels.to(self.device))[:2])

    def _patches(self, features: list[Tensor]) -> Tensor:
        """Joins the levels on the grid of stride 8, each averaged over 3 x 3 and of equal weight.

        Returns:
            (N, GRID * GRID, D) normalised.
        """
        levels = []
        for level in features:
            level = F.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False)
            level = F.interpolate(level, (GRID, GRID), mode="bilinear", align_corners=False)
            levels.append(F.normalize(level, dim=1))
        return F.normalize(torch.cat(levels, dim=1), dim=1).flatten(2).transpose(1, 2)


def _usual_distance(patches: Tensor) -> float:
    """Returns the distance that `USUAL` of the normal patches stay under.

    Args:
        patches: (k, GRID * GRID, D) normalised, of all normal images. A patch is compared with all others save those
            near it in its own image, which show the same.
    """
    cells = torch.arange(GRID * GRID)
    row, column = cells // GRID, cells % GRID
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs()).to(patches.device)
    nearest = []
    for place, image in enumerate(patches):
        alike = image @ patches.transpose(1, 2)
        alike[place].masked_fill_(apart <= NEAR, -1)
        nearest.append(alike.amax(dim=(0, 2)))
    distances = (1 - torch.cat(nearest)).clamp(min=0) / 2
    # Two copies of one image are at no distance from each other.
    return max(float(torch.quantile(distances, USUAL)), 1e-3)
