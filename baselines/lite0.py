"""EfficientNet-Lite0 as a backbone: small, and with ImageNet weights that come as a Python package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
from mmengine.model import BaseModule
from torch import Tensor, nn

from baselines.models import AGSSP_MODELS


@AGSSP_MODELS.register_module()
class Lite0(BaseModule):
    """timm's `tf_efficientnet_lite0` up to its last feature map; its parameters have timm's names.

    Args:
        init_cfg: Of mmengine; timm's own initialisation stands when None.
    """

    def __init__(self, init_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(init_cfg)
        network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True)
        self.conv_stem = network.conv_stem
        self.bn1 = network.bn1
        self.blocks = network.blocks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Computes feature maps.

        Args:
            images: (N, 3, H, W), RGB in [0, 1].

        Returns:
            (N, 40, H/8, W/8), (N, 112, H/16, W/16), (N, 320, H/32, W/32); sizes are rounded up.
        """
        return tuple(self._features(images))

    def lower_stages(self, stages: int) -> list[nn.Module]:
        """Returns the stem and all blocks up to stride `2 ** (stages + 1)`, for freezing."""
        # timm's seven groups of blocks end at strides 2, 4, 8, 16, 16, 32, 32.
        return [self.conv_stem, self.bn1, *self.blocks[: (2, 3, 5, 7)[stages - 1]]]

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        features = self.bn1(self.conv_stem(images))
        for index, stage in enumerate(self.blocks):
            features = stage(features)
            if index in (2, 4, 6):  # the last at strides 8, 16 and 32
                yield features
