"""One input convention: RGB in [0, 1]. Weights trained on another one are changed so that they expect ours.

A network whose first convolution was trained on `(x - mean) / std` computes

    W * ((x - mean) / std) + b  =  (W / std) * x  +  (b - sum of W * mean / std),

so dividing the filters and shifting the bias is exact wherever the filter lies inside the image. A convolution
without a bias is followed by a batch normalisation, whose running mean takes the shift. In training mode batch
normalisation subtracts the batch's mean and the shift cancels.

At the border the two differ: the original pads with the mean colour (zero after normalisation), ours with black.
A filter that reaches over the border there misses the shift of the taps outside, at most
`sum over these taps of |W| * mean / std`. Patch embeddings do not pad, so Swin is exact everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datasets_builders.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class InputConvention:
    """What a network was trained to see: `(pixel - mean) / std` of pixels in [0, 1].

    Attributes:
        name: For reports.
        mean: By channel, in the order the network sees them.
        std: By channel.
        bgr: Whether blue comes first.
    """

    name: str
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    bgr: bool = False


UNIT = InputConvention("unit")
"""Ours: RGB in [0, 1] (mean 0, std 255 of pixels in 0..255)."""
IMAGENET = InputConvention("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""torchvision, timm, OpenMMLab (as 123.675 / 58.395 and so on of 0..255)."""

_CONVENTIONS = {
    convention.name: convention
    for convention in (
        UNIT,
        IMAGENET,
        # TensorFlow's EfficientNet-Lite: 127 and 128 of 0..255.
        InputConvention("tf_lite", (127 / 255,) * 3, (128 / 255,) * 3),
        # Detectron's Caffe networks: BGR, mean only, of 0..255.
        InputConvention("caffe", (103.53 / 255, 116.28 / 255, 123.675 / 255), (1 / 255,) * 3, bgr=True),
    )
}

# First convolution of each backbone, with the batch normalisation that follows it; None where it has a bias.
_FIRST = {
    "backbone.stem.conv": "backbone.stem.bn",
    "backbone.conv1": "backbone.bn1",
    "backbone.conv_stem": "backbone.bn1",
    "backbone.patch_embed.projection": None,
}


def convention(name: str) -> InputConvention:
    """Returns a convention by its name: `unit`, `imagenet`, `tf_lite` or `caffe`.

    Raises:
        UserError: There is no such convention.
    """
    if name not in _CONVENTIONS:
        raise unknown_name("input convention", name, _CONVENTIONS, see="docs/weights.md")
    return _CONVENTIONS[name]


def first_convolution(state: dict[str, Tensor]) -> str:
    """Returns the name, in a backbone's state, of the convolution that sees the image.

    Raises:
        UserError: None of the known ones is there.
    """
    for name in _FIRST:
        if f"{name}.weight" in state:
            return name
    raise UserError(
        "The weights hold no first convolution of a known backbone; their input cannot be adapted."
    )


def adapt(state: dict[str, Tensor], trained_on: InputConvention) -> dict[str, Tensor]:
    """Returns the weights of the same network for images in RGB and [0, 1].

    Args:
        state: Tensors under our names (`backbone.*`).
        trained_on: What they expect now.

    Raises:
        UserError: The first convolution, or what must take its shift, is not there.
    """
    if trained_on == UNIT:
        return state
    first = first_convolution(state)
    weight = state[f"{first}.weight"]
    if weight.ndim != 4 or weight.shape[1] != 3:
        raise UserError(
            f"{first}.weight has shape {tuple(weight.shape)}: it does not see an image of 3 channels."
        )
    # In float64: the division and the sum are rounded once, at the end.
    mean, std = (
        weight.new_tensor(values).double().view(1, 3, 1, 1) for values in (trained_on.mean, trained_on.std)
    )
    scaled = weight.double() / std
    shift = (scaled * mean).sum(dim=(1, 2, 3))
    norm = _FIRST[first]
    target, sign = (f"{first}.bias", -1) if norm is None else (f"{norm}.running_mean", 1)
    if target not in state:
        raise UserError(
            f"The weights hold {first}.weight but not {target}, which must take the input's mean."
        )
    changed = {
        f"{first}.weight": (scaled.flip(1) if trained_on.bgr else scaled).to(weight.dtype),
        target: (state[target].double() + sign * shift).to(state[target].dtype),
    }
    return {**state, **changed}
