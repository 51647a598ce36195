"""The pretraining methods that the benchmark compares: mmpretrain's models around our detectors' backbones.

Every model has the backbone as `student`, a `task_loss` of a batch, `views` (of an image, that the loss compares),
`hides_pixels` (whether the loss is computed from masked images), and `of`, which makes it from a recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from baselines import openmmlab

openmmlab.activate()

import mmyolo.models  # noqa: F401 (registers the backbones)
from mmengine import ConfigDict
from mmengine.dist import is_distributed
from mmengine.logging import MMLogger
from mmengine.model import BaseDataPreprocessor
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models import (
    GlobalAveragePooling,
    ImageClassifier,
    LinearClsHead,
    MoCoV3,
    MoCoV3Head,
    NonLinearNeck,
    SimMIM,
    SimMIMHead,
    SimMIMLinearDecoder,
)
from mmpretrain.structures import DataSample
from mmyolo.registry import MODELS

from baselines import backbones
from baselines.backbones import Backbone
from baselines.detectors import backbone_config

STRIDE = 32
"""Of every backbone's last feature map."""

PATCH = 4
"""Side of Swin's patches, in pixels."""


def build_backbone(backbone: Backbone) -> nn.Module:
    """Builds a backbone as it stands in our detectors, with initial values from torch's generator."""
    backbones.register()
    module = _initialised(MODELS.build(ConfigDict(backbone_config(backbone))))
    # Nobody looks at the lower outputs of a Swin in pretraining. Parameters without gradients must not wait for any.
    for index in getattr(module, "out_indices", ())[:-1]:
        norm = getattr(module, f"norm{index}", None)
        if isinstance(norm, nn.LayerNorm):
            norm.requires_grad_(False)
    return module


def _initialised(module: Any) -> Any:
    """Gives a module of OpenMMLab its initial values, without the log line for each of them."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        module.init_weights()
    finally:
        logger.setLevel(level)
    return module


class Classification(ImageClassifier):
    """Supervised classification: cross-entropy over the categories, from the averaged last feature map.

    Args:
        student: Backbone; its weights stay.
        channels: Of its last feature map.
        categories: Number of categories.
    """

    views = 1
    hides_pixels = False

    @classmethod
    def of(cls, student: nn.Module, channels: int, categories: int, recipe: Any) -> Self:
        """Makes it for a corpus of so many categories; nothing of the recipe matters here."""
        return cls(student, channels, categories)

    def __init__(self, student: nn.Module, channels: int, categories: int):
        head = LinearClsHead(categories, channels, loss={"type": "mmpretrain.CrossEntropyLoss"})
        super().__init__(
            backbone=student,
            neck=_LastAverage(),
            head=_initialised(head),
            data_preprocessor=BaseDataPreprocessor(),
        )

    @property
    def student(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def task_loss(self, views: Sequence[Tensor], labels: Tensor, masks: Tensor | None) -> Tensor:
        """Returns the mean cross-entropy of the first view, (N, 3, S, S) in [0, 1]; labels are (N,)."""
        samples = [DataSample().set_gt_label(label) for label in labels]
        return self.loss(views[0], samples)["loss"]


class MomentumContrast(MoCoV3):
    """MoCo v3 for convolutional networks: two views of an image against all other images of the batch.

    Args:
        student: Backbone; its weights stay, and the momentum encoder starts from them.
        channels: Of its last feature map.
        hidden: Width of the projector's and predictor's hidden layer.
        out: Width of what is compared.
        temperature: Of the softmax.
        momentum: The momentum encoder's first step towards the student; it falls to 0 along half a cosine.
    """

    views = 2
    hides_pixels = False

    @classmethod
    def of(cls, student: nn.Module, channels: int, categories: int, recipe: Any) -> Self:
        """Makes it as the recipe says; it learns nothing of categories."""
        return cls(student, channels, **recipe.contrast.model_dump())

    def __init__(
        self, student: nn.Module, channels: int, *, hidden: int, out: int, temperature: float, momentum: float
    ):
        norm = {"type": "SyncBN" if is_distributed() else "BN1d"}
        projector = _Projector(
            channels, hidden, out, with_last_bn_affine=False, with_avg_pool=True, norm_cfg=norm
        )
        predictor = {
            "type": "mmpretrain.NonLinearNeck",
            "in_channels": out,
            "hid_channels": hidden,
            "out_channels": out,
            "with_last_bn": False,
            "with_avg_pool": False,
            "norm_cfg": norm,
        }
        loss = {"type": "mmpretrain.CrossEntropyLoss", "loss_weight": 2 * temperature}
        super().__init__(
            backbone=student,
            neck=_initialised(projector),
            head=_initialised(MoCoV3Head(predictor, loss, temperature)),
            base_momentum=momentum,
            data_preprocessor=BaseDataPreprocessor(),
        )

    @property
    def student(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def task_loss(self, views: Sequence[Tensor], labels: Tensor, masks: Tensor | None) -> Tensor:
        """Returns the symmetric contrastive loss of two views, (N, 3, S, S) in [0, 1] each."""
        return self.loss(list(views), [])["loss"]


class _LastAverage(GlobalAveragePooling):
    """Averages the last of a backbone's feature maps."""

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return super().forward(tuple(features[-1:]))


class _Projector(NonLinearNeck):
    """mmpretrain's projector on the last of a backbone's feature maps."""

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor]:
        return super().forward(tuple(features[-1:]))


class MaskedImages(SimMIM):
    """SimMIM: hidden patches of an image are reconstructed from the others; mean absolute error of hidden pixels.

    Args:
        student: A Swin; its weights stay.
        channels: Of its last feature map.
    """

    views = 1
    hides_pixels = True

    @classmethod
    def of(cls, student: nn.Module, channels: int, categories: int, recipe: Any) -> Self:
        """Makes it; it learns nothing of categories, and what is hidden is decided where images are read."""
        return cls(student, channels)

    def __init__(self, student: nn.Module, channels: int):
        loss = {"type": "mmpretrain.PixelReconstructionLoss", "criterion": "L1", "channel": 3}
        super().__init__(
            backbone=_MaskedSwin(student),
            neck=_initialised(SimMIMLinearDecoder(channels, STRIDE)),
            head=SimMIMHead(PATCH, loss),
            data_preprocessor=BaseDataPreprocessor(),
        )

    @property
    def student(self) -> nn.Module:
        """The backbone."""
        return self.backbone.swin

    def task_loss(self, views: Sequence[Tensor], labels: Tensor, masks: Tensor | None) -> Tensor:
        """Returns the error of the first view, (N, 3, S, S) in [0, 1].

        Args:
            views: The images.
            labels: Unused.
            masks: (N, S / 4, S / 4), 1 where a patch is hidden.
        """
        assert masks is not None
        return self.loss(views[0], [DataSample(mask=mask) for mask in masks])["loss"]


class _MaskedSwin(nn.Module):
    """mmdet's Swin with hidden patches: their embeddings are replaced by one learned token."""

    def __init__(self, swin: Any):
        super().__init__()
        self.swin = swin
        self.mask_token = nn.Parameter(torch.zeros(1, 1, swin.num_features[0]))
        trunc_normal_(self.mask_token, mean=0, std=0.02)

    def forward(self, images: Tensor, mask: Tensor) -> list[Tensor]:
        """Returns the last feature map alone, as SimMIM's decoder expects."""
        hidden = mask.flatten(1).unsqueeze(-1)

        def hide(_: nn.Module, inputs: Any, embedded: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            tokens, size = embedded
            weight = hidden.to(tokens.dtype)
            return tokens * (1 - weight) + self.mask_token.to(tokens.dtype) * weight, size

        handle = self.swin.patch_embed.register_forward_hook(hide)
        try:
            return self.swin(images)[-1:]
        finally:
            handle.remove()
