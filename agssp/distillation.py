"""Anomaly-guided distillation: a backbone learns to look where the anomaly maps point (paper section 4.1.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn
from torch.nn import functional

from agssp.recipes import Distillation

Loss = Literal["cosine", "l2"]


def attention(features: Tensor) -> Tensor:
    """Turns a feature map into an attention map: the sum of squares over its channels (equation 6).

    Args:
        features: (N, C, H, W).

    Returns:
        (N, H, W) float32, at least 0.
    """
    return features.float().square().sum(dim=1)


def distillation_loss(features: Sequence[Tensor], maps: Tensor, loss: Loss) -> Tensor:
    """Measures how far attention is from the anomaly maps; the mean over layers and images (equation 7).

    A layer's target is the given map, averaged over the pixels that each of its positions covers; always of the
    original map, never of another layer's target. With a the attention and m the target of one image, flattened:

    * `cosine`: 2 - 2 cos(a, m), from 0 to 2;
    * `l2`: mean of (a / max a - m / max m) squared, from 0 to 1. Both are divided by their maximum alone, so
      that a level map stays level and its noise is not blown up to full range.

    A level map asks for level attention. A map that is 0 everywhere says nothing: its image is left out.

    Args:
        features: Of each layer, (N, C, H, W).
        maps: (N, height, width), at least 0, aligned with the images.
        loss: `cosine` or `l2`.

    Returns:
        A float32 number; 0, with zero gradients, where no map says anything.
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps = maps.float()
        speaks = maps.flatten(1).amax(dim=1) > 0
        layers = [_of_layer(attention(layer), maps, loss) for layer in features]
        of_images = torch.stack(layers).mean(dim=0)
        # `where`, not a product: an image that is left out must not pass on a NaN.
        total = torch.where(speaks, of_images, 0.0).sum()
        return total / speaks.sum().clamp(min=1)


def _of_layer(attended: Tensor, maps: Tensor, loss: Loss) -> Tensor:
    """Returns the loss of one layer for each image, (N,)."""
    height, width = attended.shape[-2:]
    target = functional.adaptive_avg_pool2d(maps[:, None], (height, width)).flatten(1)
    attended = attended.flatten(1)
    if loss == "cosine":
        return 2 - 2 * functional.cosine_similarity(attended, target, dim=1)
    return (_to_unit(attended) - _to_unit(target)).square().mean(dim=1)


def _to_unit(values: Tensor) -> Tensor:
    """Divides each row by its maximum; rows of zeros stay zeros."""
    return values / values.amax(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


@contextmanager
def caught_features(backbone: nn.Module, stages: int) -> Iterator[list[list[Tensor]]]:
    """Catches the features of a backbone's last stages in every forward pass inside the context.

    Swin's features are caught before its output norms: behind a LayerNorm the sum of squares over the channels is
    the same almost everywhere.

    Args:
        backbone: A backbone of our detectors, which returns feature maps from high to low resolution.
        stages: Number of last stages.

    Yields:
        A list to which each forward pass appends its features, (N, C, H, W) each.
    """
    passes: list[list[Tensor]] = []
    norms = [norm for name in ("norm0", "norm1", "norm2", "norm3") if (norm := getattr(backbone, name, None))]
    before_norm: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        before_norm.append(inputs[0])

    def finish(_: nn.Module, inputs: Any, outputs: Sequence[Tensor]) -> None:
        features = list(outputs)
        if before_norm:
            features = [
                tokens.transpose(1, 2).unflatten(2, output.shape[-2:])
                for tokens, output in zip(before_norm, outputs, strict=True)
            ]
            before_norm.clear()
        passes.append(features[-stages:])

    is_swin = hasattr(backbone, "patch_embed")
    handles = [norm.register_forward_pre_hook(keep) for norm in norms if is_swin]
    handles.append(backbone.register_forward_hook(finish))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


class AnomalyGuided(BaseModel):
    """A pretraining task, alone or with anomaly-guided distillation: task + weight * distillation (equation 8).

    The weight is kept in the buffer `weight`, and so in every checkpoint. With `first_iteration` it is the ratio of
    the two losses, each averaged over the ranks, in the first iteration whose maps say something.

    Args:
        task: A model of `baselines.pretraining`.
        settings: None for the task alone.
    """

    def __init__(self, task: Any, settings: Distillation | None):
        super().__init__(data_preprocessor=BaseDataPreprocessor())
        self.task = task
        self.settings = settings
        fixed = settings is not None and settings.weight != "first_iteration"
        self.register_buffer("weight", torch.tensor(settings.weight if fixed and settings else _UNSET))
        self._is_set = False

    def init_weights(self) -> None:
        """Does nothing: the task's weights were initialised, or loaded, where it was built."""

    def forward(
        self,
        views: Sequence[Tensor],
        labels: Tensor,
        masks: Tensor | None = None,
        maps: Tensor | None = None,
        mode: str = "loss",
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            views: One or two, (N, 3, S, S) uint8, RGB.
            labels: (N,) int64, categories.
            masks: (N, S / 4, S / 4), 1 where hidden; for SimMIM.
            maps: (N, S, S) float32, aligned with the first view; where maps guide.
            mode: `loss`, the only one.

        Returns:
            `loss`, and its parts `loss_task` and `loss_distill`, without gradients and before weighting.
        """
        images = [_to_unit_range(view) for view in views]
        if self.settings is None:
            loss = self.task.task_loss(images, labels, masks)
            return {"loss_task": loss.detach(), "loss": loss}
        assert maps is not None
        with caught_features(self.task.student, self.settings.stages) as passes:
            task = self.task.task_loss(images, labels, masks)
            if self.task.hides_pixels:
                # What is learned from hidden pixels does not tell where a whole image has its anomalies.
                passes.clear()
                self.task.student(images[0])
        distill = distillation_loss(passes[0], maps, self.settings.loss)
        self._set_weight(task, distill)
        loss = task + self.weight.clamp(min=0) * distill
        return {"loss_task": task.detach(), "loss_distill": distill.detach(), "loss": loss}

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what is minimised, and what is logged; mmengine would add up everything that is called a loss."""
        return losses["loss"], losses

    def _set_weight(self, task: Tensor, distill: Tensor) -> None:
        if self._is_set:
            return
        if float(self.weight) == _UNSET:
            means = torch.stack([task.detach().float(), distill.detach().float()])
            all_reduce(means, op="mean")
            if float(means[1]) == 0:
                return
            self.weight.copy_(means[0] / means[1])
        self._is_set = True


_UNSET = -1.0


def _to_unit_range(images: Tensor) -> Tensor:
    """Returns float32 images in [0, 1], in the layout that convolutions run fastest in on a CPU."""
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)
