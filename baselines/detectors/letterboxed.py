"""mmdet's detectors on letterboxed images: what they find comes back in the pixels of the original image.

mmdet's heads undo the scaling of an image alone; its padding is undone here. Names of weights are mmdet's own.
"""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import DINO, FasterRCNN
from mmdet.structures import DetDataSample
from torch import Tensor

from baselines.models import AGSSP_MODELS


class _Letterboxed:
    """Undoes the padding of predictions; stands before a detector's class."""

    def predict(self, inputs: Tensor, samples: list[DetDataSample], rescale: bool = True) -> Any:
        """Finds objects.

        Args:
            inputs: (N, 3, S, S), RGB in [0, 1].
            samples: With `pad_param` (top, bottom, left, right pixels), `scale_factor` (width, height) and `ori_shape`.
            rescale: Whether boxes come back in pixels of the original image, and within it.

        Returns:
            The samples, with `pred_instances`.
        """
        found = super().predict(inputs, samples, rescale=rescale)  # type: ignore[misc]
        for sample in found:
            instances = sample.pred_instances
            if rescale:
                top, _, left, _ = (float(side) for side in sample.pad_param)
                across, down = sample.scale_factor
                height, width = sample.ori_shape
                boxes = instances.bboxes
                boxes[:, 0::2] = (boxes[:, 0::2] - left / across).clamp(0, width)
                boxes[:, 1::2] = (boxes[:, 1::2] - top / down).clamp(0, height)
            # DINO's head keeps its best queries however small their scores.
            threshold = self.test_cfg.get("score_thr")  # type: ignore[attr-defined]
            if threshold is not None:
                sample.pred_instances = instances[instances.scores > threshold]
        return found


@AGSSP_MODELS.register_module(name="FasterRCNN")
class LetterboxedFasterRCNN(_Letterboxed, FasterRCNN):
    """Faster R-CNN (Ren et al. 2015) on letterboxed images."""


@AGSSP_MODELS.register_module(name="DINO")
class LetterboxedDINO(_Letterboxed, DINO):
    """DINO (Zhang et al. 2023) on letterboxed images."""
