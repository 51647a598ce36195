"""Maps by WinCLIP, the detector that the paper compares with; needs the extra `anomaly`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp.kead import knowledge
from agssp.kead.encoder import load_encoder
from agssp.map_inputs import MapInput
from agssp.map_sources import AnomalyMaps, MapSource
from baselines.anomaly import BATCH_SIZE, WinClip


class WinClipSource(MapSource):
    """WinCLIP on an encoder of KeAD's; without normal images it is zero-shot. Maps are in [0, 1]."""

    needs_normals = True
    batch_size = BATCH_SIZE

    def __init__(
        self,
        encoder: str,
        device: str = "cpu",
        weights: Path | None = None,
        descriptions: Path | None = None,
    ) -> None:
        """Loads the encoder.

        Args:
            encoder: As of `agssp.kead.encoder.load_encoder`.
            device: Of torch.
            weights: Local file instead of the encoder's own.
            descriptions: The user's own, which give the objects' phrases.

        Raises:
            UserError: The encoder or its weights cannot be had, or anomalib is not installed.
        """
        self.name = f"winclip:{encoder}"
        self.device = device
        self._descriptions = descriptions
        loaded = load_encoder(encoder, weights=weights, device=device, precision="fp32")
        self._winclip = WinClip(loaded.clip, loaded.preprocess, loaded.tokenizer, loaded.identity)

    def identity(self) -> dict[str, Any]:
        return self._winclip.identity | {"knowledge": knowledge.fingerprint(self._descriptions)}

    def fit(self, category: str, normals: Sequence[NDArray[np.uint8]]) -> Any:
        return self._winclip.fit(knowledge.lookup(category, self._descriptions).phrase, normals)

    def score(self, batch: Sequence[MapInput], model: Any) -> AnomalyMaps:
        return AnomalyMaps(*self._winclip.score([one.image for one in batch], model))
