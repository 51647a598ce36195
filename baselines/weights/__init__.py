"""Pretrained weights: where they come from, what is in their files, and how they get into our models.

    from baselines import weights

    local = weights.resolve("imagenet-resnet50")        # a file on this machine, with its hash
    report = weights.load(detector, local)              # all or nothing, and a report

Importing this package imports no torch.
"""

from baselines.weights.files import save
from baselines.weights.inputs import InputConvention
from baselines.weights.layouts import to_layout
from baselines.weights.loading import LoadReport, load
from baselines.weights.sources import (
    LocalWeights,
    PublicWeights,
    public,
    public_names,
    resolve,
)

__all__ = [
    "InputConvention",
    "LoadReport",
    "LocalWeights",
    "PublicWeights",
    "load",
    "public",
    "public_names",
    "resolve",
    "save",
    "to_layout",
]
