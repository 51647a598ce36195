"""CLIP's tokenizer, with all of its vocabulary or a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datasets_builders.errors import UserError


class Tokenizer:
    """Turns texts into a CLIP text encoder's numbers.

    Attributes:
        context_length: Numbers per text that the encoder takes, with start and end.
    """

    def __init__(self, context_length: int, kept: Sequence[int] | None = None, clip: Any = None) -> None:
        """Takes the vocabulary.

        Args:
            context_length: Numbers per text.
            kept: The ids of CLIP's vocabulary that the encoder knows, ascending: its own ids are their places. The
                padding (0) and CLIP's two largest, start and end, are among them. None: all.
            clip: One of open_clip's tokenizers; None: its usual one.
        """
        import open_clip

        self.context_length = context_length
        self._clip = open_clip.SimpleTokenizer() if clip is None else clip
        self._kept = None if kept is None else torch.tensor(kept)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Returns (N, context_length) int64; longer texts are cut, so check them before (`prompts.check_lengths`).

        Raises:
            UserError: A text has a piece that is not in the encoder's part of the vocabulary.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids: Tensor = self._clip(texts, context_length=context_length or self.context_length)
        if self._kept is None:
            return ids
        places = torch.searchsorted(self._kept, ids).clamp_(max=len(self._kept) - 1)
        unknown = (self._kept[places] != ids).any(dim=1)
        if unknown.any():
            text = texts[int(unknown.nonzero()[0])]
            raise UserError(
                f"This encoder's vocabulary lacks words of {text!r}. Use other words, or an encoder that has all "
                "of CLIP's vocabulary, as base, large and huge have."
            )
        return places
