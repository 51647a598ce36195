"""The settings of pseudo boxes, apart from what computes them, so that recipes can be read in no time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from datasets_builders.errors import UserError

OUTLINES = ("components", "contours")


@dataclass(frozen=True)
class BoxSettings:
    """How boxes are made from maps.

    Attributes:
        margin: c of `T = mean of the maxima - c`.
        image_gate: An image whose image score is under it gets no boxes (the paper); None: no such gate (the
            released code), normal is then what has no pixel above T.
        top: Largest number of boxes of an image, before suppression.
        nms_iou: Intersection over union with a better box above which a box goes.
        outline: `components`: connected components, which may lie in each other's holes (the paper);
            `contours`: outer contours, whose holes belong to them with all that is inside (the released code).

    Raises:
        UserError: A value is out of its range.
    """

    margin: float = 0.1
    image_gate: float | None = None
    top: int = 10
    nms_iou: float = 0.8
    outline: str = "components"

    def __post_init__(self) -> None:
        if not math.isfinite(self.margin):
            raise UserError(f"--margin {self.margin} is not a finite number: the paper's is 0.1.")
        if self.image_gate is not None and not math.isfinite(self.image_gate):
            raise UserError(
                f"--image-gate {self.image_gate} is not a finite number: leave it out for no gate."
            )
        if self.top < 1:
            raise UserError(f"--top {self.top}: an image needs room for at least 1 box.")
        if not 0 <= self.nms_iou <= 1:
            raise UserError(f"--nms {self.nms_iou} is not in 0..1: it is an intersection over union.")
        if self.outline not in OUTLINES:
            raise UserError(f"--outline {self.outline!r} is neither of {', '.join(OUTLINES)}.")
