"""Anomaly scores from CLIP's features (paper section 3.2). All features are L2-normalised float32."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

ImageScore = Literal["paper", "released"]

SIMILARITIES_AT_ONCE = 2**24
"""Bounds the memory of `nearest_distance`: 64 MiB of float32 for any number of patches and normal images."""


def mean_feature(features: Tensor) -> Tensor:
    """Returns the normalised mean, (D,), of the features (n, D) of several prompts."""
    return F.normalize(features.mean(dim=0), dim=0)


def without_redundancy(texts: Tensor, empty: Tensor) -> Tensor:
    """Takes what every text has in common out of the texts (CLIP Surgery; not in the paper).

    Args:
        texts: (n, D).
        empty: (D,), the mean feature of the templates without an object.

    Returns:
        (n, D), normalised again.
    """
    return F.normalize(texts - empty, dim=-1)


def anomaly_probability(features: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """Softmax over the similarities to the normal and the anomalous text (equations 1 to 3).

    Args:
        features: (..., D) of images or patches.
        texts: (2, D): normal, anomalous.
        temperature: Divides the cosines.

    Returns:
        (...) in [0, 1]: the anomalous share.
    """
    return (features @ texts.T / temperature).softmax(dim=-1)[..., 1]


def nearest_distance(patches: Tensor, memory: Tensor) -> Tensor:
    """Half the cosine distance of every patch to the nearest patch in memory (equation 5).

    The paper writes "maximum cosine distance"; the nearest neighbour is what its code computes.

    Args:
        patches: (N, P, D).
        memory: (M, D), M >= 1.

    Returns:
        (N, P) in [0, 1].
    """
    queries = patches.flatten(0, 1)
    rows = max(1, SIMILARITIES_AT_ONCE // min(len(memory), SIMILARITIES_AT_ONCE))
    columns = min(len(memory), SIMILARITIES_AT_ONCE)
    nearest = torch.cat([_largest_cosine(part, memory, columns) for part in queries.split(rows)])
    return ((1 - nearest) / 2).clamp_(0, 1).unflatten(0, patches.shape[:2])


def _largest_cosine(queries: Tensor, memory: Tensor, columns: int) -> Tensor:
    parts = [(queries @ part.T).amax(dim=1) for part in memory.split(columns)]
    return torch.stack(parts).amax(dim=0)


def image_score(cls_probability: Tensor, maps: Tensor, *, few_shot: bool, kind: ImageScore) -> Tensor:
    """The score of each image.

    Args:
        cls_probability: (N,) in [0, 1], the anomalous share of the image's own feature.
        maps: (N, P), the final maps.
        few_shot: Whether the maps hold a few-shot part; without it the score is `cls_probability`.
        kind: `paper`: the sum of the map's maximum and `cls_probability`, in [0, 3]; `released`: half of it, as the
            released code has it, which ranks the images alike.

    Returns:
        (N,).
    """
    if not few_shot:
        return cls_probability
    total = cls_probability + maps.amax(dim=1)
    return total / 2 if kind == "released" else total
