"""Maps by KeAD, the paper's detector."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp.kead import knowledge, prompts
from agssp.kead.encoder import load_encoder
from agssp.kead.kead import CategoryModel, KeAD, KeADSettings
from agssp.map_inputs import Images, MapInput
from agssp.map_sources import AnomalyMaps, MapSource

logger = logging.getLogger(__name__)


class KeADSource(MapSource):
    """KeAD on an encoder; without normal images it is zero-shot. Maps are in [0, 2]."""

    needs_normals = True

    def __init__(
        self,
        encoder: str,
        device: str = "cpu",
        weights: Path | None = None,
        precision: str = "auto",
        settings: Mapping[str, Any] | None = None,
        descriptions: Path | None = None,
    ) -> None:
        """Loads the encoder.

        Args:
            encoder: A preset, or MODEL/TAG of open_clip; see `agssp.kead.encoder.load_encoder`.
            device: Of torch.
            weights: Local file instead of the encoder's own.
            precision: `auto`, `fp32`, `bf16` or `fp16`.
            settings: Of `KeADSettings`, by name; the paper's by default.
            descriptions: The user's own, which win over ours.

        Raises:
            UserError: The encoder or its weights cannot be had, or the descriptions are not of their form.
        """
        self.name = f"kead:{encoder}"
        self.device = device
        self._words = {"knowledge": knowledge.fingerprint(descriptions), "prompts": prompts.fingerprint()}
        self._kead = KeAD(
            load_encoder(encoder, weights=weights, device=device, precision=precision),
            KeADSettings(**settings or {}),
            descriptions,
        )
        self.batch_size = self._kead.encoder.batch_size
        self._zero_shot: dict[str, CategoryModel] = {}

    def identity(self) -> dict[str, Any]:
        return self._kead.identity | self._words

    def check(self, images: Images) -> None:
        unknown = [
            name for name in dict.fromkeys(images.categories) if self._without_normals(name).category.fallback
        ]
        if unknown:
            logger.warning("Described as metal in general, for want of knowledge: %s", ", ".join(unknown))

    def fit(self, category: str, normals: Sequence[NDArray[np.uint8]]) -> CategoryModel:
        return self._kead.fit(category, normals)

    def score(self, batch: Sequence[MapInput], model: CategoryModel) -> AnomalyMaps:
        return self._kead.score([one.image for one in batch], model)

    def rate(self, category: str, batch: Sequence[MapInput]) -> NDArray[np.float32]:
        return self.score(batch, self._without_normals(category)).image_scores

    def embed(self, batch: Sequence[MapInput]) -> NDArray[np.float32]:
        encoder = self._kead.encoder
        pixels = encoder.preprocess([one.image for one in batch])
        features = encoder.encode_images(pixels, vv=False, layer_aliasing=False).cls
        assert features is not None
        return features.cpu().numpy()

    def _without_normals(self, category: str) -> CategoryModel:
        if category not in self._zero_shot:
            self._zero_shot[category] = self._kead.fit(category, [])
        return self._zero_shot[category]
