"""KeAD, the knowledge-enhanced anomaly detector of the paper (section 3.2): training-free, zero-shot and few-shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agssp.kead import prompts, scoring
from agssp.kead.encoder import Encoder, ImageFeatures
from agssp.kead.knowledge import Category, lookup
from agssp.map_sources import AnomalyMaps
from datasets_builders.errors import UserError


@dataclass(frozen=True)
class KeADSettings:
    """What a user may switch. The defaults are the paper's.

    Attributes:
        vv: The V-V stream; without it, the patch tokens are plain CLIP's.
        descriptions: The category's descriptions in the prompts, beside the generic states.
        layer_aliasing: Every tap of the V-V stream gives its last tokens, as in the released code.
        redundancy_removal: The texts without what every text has in common, as in the released code.
        image_score: `paper`: the map's maximum plus the image's own probability; `released`: half of that.
        temperature: Divides the cosines before the softmax.
    """

    vv: bool = True
    descriptions: bool = True
    layer_aliasing: bool = False
    redundancy_removal: bool = False
    image_score: scoring.ImageScore = "paper"
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.image_score not in get_args(scoring.ImageScore):
            raise UserError(f"image_score is {self.image_score!r}. It is 'paper' or 'released'.")
        if not self.temperature > 0:
            raise UserError(
                f"temperature is {self.temperature}. It must be greater than 0 (the paper's: 0.07)."
            )


@dataclass(frozen=True)
class CategoryModel:
    """What KeAD keeps of one category: nothing is trained.

    Attributes:
        category: What is known of it; `fallback` tells that its name is not.
        texts: (2, D) normalised: normal, anomalous.
        memory: Per tap, the patch tokens of all normal images, (k * P, D) normalised; empty for zero-shot.
        shots: Number of normal images.
    """

    category: Category
    texts: Tensor
    memory: tuple[Tensor, ...]
    shots: int


class KeAD:
    """Scores images of a category against what is known of it and, where there are any, normal images of it."""

    def __init__(
        self, encoder: Encoder, settings: KeADSettings = KeADSettings(), knowledge: Path | None = None
    ) -> None:
        """Takes the encoder and the settings.

        Args:
            encoder: From `load_encoder`.
            settings: The switches.
            knowledge: The user's own descriptions, which win over ours.
        """
        self.encoder = encoder
        self.settings = settings
        self._knowledge = knowledge
        self._texts: dict[prompts.Prompts, Tensor] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes a map, save the category's prompts and its normal images. JSON-able."""
        return {"method": "kead", "encoder": self.encoder.identity, "settings": asdict(self.settings)}

    def fit(self, category: str, normals: Sequence[NDArray[np.uint8]]) -> CategoryModel:
        """Prepares a category.

        Args:
            category: Its name; one that is not known is described as metal in general.
            normals: Normal images, (H, W, 3) RGB uint8 each; all of them are used. None: zero-shot.

        Raises:
            UserError: A prompt is too long for the encoder, or an image is not RGB uint8.
        """
        known = lookup(category, self._knowledge)
        memory: list[tuple[Tensor, ...]] = []
        for start in range(0, len(normals), self.encoder.batch_size):
            batch = self.encoder.preprocess(normals[start : start + self.encoder.batch_size])
            memory.append(self._encode(batch, cls=False).patches)
        return CategoryModel(
            category=known,
            texts=self._text_features(known),
            memory=tuple(torch.cat(parts).flatten(0, 1) for parts in zip(*memory, strict=True)),
            shots=len(normals),
        )

    def score(self, images: Sequence[NDArray[np.uint8]], model: CategoryModel) -> AnomalyMaps:
        """Scores images; the result for one image does not depend on the others, save for rounding.

        Args:
            images: (H, W, 3) RGB uint8 each, of any sizes and any number.
            model: Of their category.

        Returns:
            Maps on the patch grid, zero-shot in [0, 1] and few-shot in [0, 2], and image scores, zero-shot in [0, 1]
            and few-shot in [0, 3] (`released`: [0, 1.5]).

        Raises:
            UserError: An image is not RGB uint8.
        """
        height, width = self.encoder.grid
        maps = np.empty((len(images), height, width), dtype=np.float32)
        scores = np.empty(len(images), dtype=np.float32)
        for start in range(0, len(images), self.encoder.batch_size):
            part = slice(start, start + self.encoder.batch_size)
            batch_maps, batch_scores = self._score_batch(self.encoder.preprocess(images[part]), model)
            maps[part] = batch_maps.unflatten(1, (height, width)).cpu().numpy()
            scores[part] = batch_scores.cpu().numpy()
        return AnomalyMaps(maps, scores)

    def _score_batch(self, batch: Tensor, model: CategoryModel) -> tuple[Tensor, Tensor]:
        features = self._encode(batch, cls=True)
        assert features.cls is not None, "asked for"
        temperature = self.settings.temperature

        def zero_shot(tokens: Tensor) -> Tensor:
            return scoring.anomaly_probability(tokens, model.texts, temperature)

        maps = torch.stack([zero_shot(tokens) for tokens in features.patches]).mean(dim=0)
        if model.memory:
            pairs = zip(features.patches, model.memory, strict=True)
            maps = maps + torch.stack([scoring.nearest_distance(*pair) for pair in pairs]).mean(dim=0)
        scores = scoring.image_score(
            zero_shot(features.cls), maps, few_shot=bool(model.memory), kind=self.settings.image_score
        )
        return maps, scores

    def _encode(self, batch: Tensor, *, cls: bool) -> ImageFeatures:
        settings = self.settings
        return self.encoder.encode_images(
            batch, vv=settings.vv, layer_aliasing=settings.layer_aliasing, cls=cls
        )

    def _text_features(self, category: Category) -> Tensor:
        """Encodes the prompts of a category, once."""
        texts = prompts.assemble(category, descriptions=self.settings.descriptions)
        if texts not in self._texts:
            prompts.check_lengths(texts, self.encoder.tokenizer, self.encoder.tokenizer.context_length)
            groups = [texts.normal, texts.anomalous]
            means = [scoring.mean_feature(self.encoder.encode_texts(group)) for group in groups]
            features = torch.stack(means)
            if self.settings.redundancy_removal:
                empty = scoring.mean_feature(self.encoder.encode_texts(texts.empty))
                features = scoring.without_redundancy(features, empty)
            self._texts[texts] = features
        return self._texts[texts]
