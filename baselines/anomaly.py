"""WinCLIP, the anomaly detector that the paper compares with, from anomalib (an optional extra)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from datasets_builders.errors import UserError

if TYPE_CHECKING:
    import torch
    from open_clip import CLIP

Images = Sequence[NDArray[np.uint8]]
VERSION = 2
BATCH_SIZE = 4
"""Images that WinCLIP scores at once: each brings several hundred windows."""


class WinClipScores(NamedTuple):
    """Scores of N images.

    Attributes:
        maps: (N, h, w) float32 on the patch grid, in [0, 1].
        image_scores: (N,) float32 in [0, 1].
    """

    maps: NDArray[np.float32]
    image_scores: NDArray[np.float32]


class WinClip:
    """WinCLIP (Jeong et al., CVPR 2023) as anomalib implements it, around a CLIP that is already loaded."""

    def __init__(
        self,
        clip: CLIP,
        preprocess: Callable[[Images], torch.Tensor],
        tokenize: Callable[[Sequence[str]], torch.Tensor],
        encoder_identity: dict[str, Any],
    ) -> None:
        """Takes the encoder.

        Args:
            clip: A CLIP vision transformer of open_clip in float32, which nobody else uses: it is changed.
            preprocess: Images to its input, (N, 3, S, S).
            tokenize: Texts to its tokens.
            encoder_identity: Names the encoder and its weights, for records.

        Raises:
            UserError: anomalib is not installed.
        """
        self._clip = clip
        self._preprocess = preprocess
        self._tokenize = tokenize
        self._library = _library()
        self.identity = {
            "method": "winclip",
            "version": VERSION,
            "anomalib": metadata.version("anomalib"),
            "encoder": encoder_identity,
        }

    def fit(self, phrase: str, normals: Images) -> Any:
        """Returns anomalib's model, set up with the prompts for an object and normal images (none: zero-shot)."""
        module = self._library
        # Its constructor downloads fixed weights; here it is given the CLIP at hand.
        local = SimpleNamespace(create_model_and_transforms=lambda *_, **__: (self._clip, None, None))
        with mock.patch.object(module, "open_clip", local):
            model = module.WinClipModel().to(next(self._clip.parameters()).device)
        _windows_as_batch(model)
        with mock.patch.object(module, "tokenize", self._tokenize):
            model.setup(phrase, self._preprocess(normals) if len(normals) else None)
        return model.eval()

    def score(self, images: Images, model: Any) -> WinClipScores:
        """Scores images; maps are those of anomalib before it enlarges them to the input's size."""
        scored = [
            self._score_batch(self._preprocess(images[start : start + BATCH_SIZE]), model)
            for start in range(0, len(images), BATCH_SIZE)
        ]
        maps, scores = (np.concatenate(parts) for parts in zip(*scored, strict=True))
        return WinClipScores(maps, scores)

    def _score_batch(
        self, batch: torch.Tensor, model: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        kept: list[torch.Tensor] = []

        def keep(maps: torch.Tensor, **_: Any) -> torch.Tensor:
            kept.append(maps[:, 0])
            return maps

        # Its last step enlarges the maps, which holds nothing new and takes 256 times the room.
        functional = SimpleNamespace(functional=SimpleNamespace(interpolate=keep))
        with mock.patch.object(self._library, "nn", functional):
            found = model(batch)
        return kept[0].float().cpu().numpy(), found.pred_score.float().cpu().numpy()


def _windows_as_batch(model: Any) -> None:
    """Lets the tokens of a window attend to each other, and to no other window.

    anomalib gives the transformer the windows along the second axis, as open_clip up to 2.26.0 took them. Since then
    they belong along the first, and the same call would, without an error, mix the windows of all images.
    """
    transformer = model.clip.visual.transformer
    if not getattr(transformer, "batch_first", False):
        return
    own = model._get_window_embeddings

    def window_embeddings(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        turns = (
            transformer.register_forward_pre_hook(lambda _, given: (given[0].transpose(0, 1), *given[1:])),
            transformer.register_forward_hook(lambda _, __, found: found.transpose(0, 1)),
        )
        try:
            return own(features, masks)
        finally:
            for turn in turns:
                turn.remove()

    model._get_window_embeddings = window_embeddings


def _library() -> Any:
    from baselines import openmmlab

    openmmlab.activate()  # torchvision does not import everywhere without it
    try:
        from anomalib.models.image.winclip import torch_model
    except ImportError as error:
        raise UserError(
            f"WinCLIP needs anomalib, which does not import here ({error}). Install it: pip install "
            "'agssp-bench[anomaly]'"
        ) from None
    return torch_model
