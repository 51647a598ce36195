"""The text tower: it learns what captions say before any image is seen, and stays as it is then.

Two captions should be as similar as what they say: sound or damaged, with which defects, on which surface. That takes
half a minute, and the image tower has fixed and well separated texts to reach for from its first step on; training
both together, as CLIP does, spends a short training on waiting for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from agssp.tiny_clip import captions
from agssp.tiny_clip.scenes import ANY, DEFECTS, surfaces

_KIND_PART, _SURFACE_PART = 0.8, 0.4
"""What defects and surface count beside sound or damaged, which counts 1."""
_SOUND_CAPTIONS, _DAMAGED_CAPTIONS, _KIND_CAPTIONS = 40, 60, 40
"""Captions of each category and defect that patches are compared with."""

Tokenize = Callable[..., Tensor]


def encode_texts(model: Any, tokenizer: Tokenize, texts: list[str]) -> Tensor:
    """Encodes texts as open_clip does, without the padding behind the longest: (N, D), normalised."""
    ids = tokenizer(texts)
    length = int(ids.argmax(dim=1).max()) + 1
    ids = ids[:, :length]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]).float())
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(dim=1)] @ model.text_projection, dim=-1)


def draw_statements(random: Random, count: int) -> tuple[list[str], Tensor]:
    """Draws captions with what they say.

    Returns:
        The captions, and (count, F) float32 unit vectors of what they say: sound or damaged, with which defects, on
        which surface.
    """
    kinds, all_surfaces = captions.types(), surfaces()
    texts, said = [], torch.zeros(count, 2 + len(kinds) + len(all_surfaces))
    for row in said:
        category, surface, shown = (
            captions.any_category(random),
            random.choice(all_surfaces),
            random.random() < 0.6,
        )
        named: list[str] = []
        if random.random() < 0.5:
            defects = random.sample(range(len(DEFECTS)), random.choice((1, 1, 2))) if shown else []
            texts.append(captions.of_image(random, surface, defects))
            named = [DEFECTS[index] for index in defects]
            row[2 + len(kinds) + all_surfaces.index(surface)] = _SURFACE_PART
        elif shown:
            kind = random.choice([None, *category.defects])
            texts.append(captions.anomalous(random, category, kind))
            named = [] if kind is None else captions.alike(kind)
        else:
            texts.append(captions.normal(random, category))
        row[int(shown)] = 1
        for one in named:
            row[2 + kinds.index(one)] = _KIND_PART / len(named) ** 0.5
    return texts, F.normalize(said, dim=-1)


def text_loss(model: Any, tokenizer: Tokenize, random: Random, count: int) -> Tensor:
    """How far captions' similarities are from those of what they say."""
    texts, said = draw_statements(random, count)
    features = encode_texts(model, tokenizer, texts)
    return F.mse_loss(features @ features.T, said @ said.T)


@dataclass(frozen=True)
class TextPool:
    """Texts that images are compared with, each the normalised mean of many captions, (n, D).

    Attributes:
        sound: Of every category that KeAD knows.
        damaged: Of every category.
        kinds: Of every one of `DEFECTS`.
    """

    sound: Tensor
    damaged: Tensor
    kinds: Tensor


@torch.no_grad()
def text_pool(model: Any, tokenizer: Tokenize, random: Random) -> TextPool:
    """Encodes captions of every category and every defect."""

    def mean(texts: list[str]) -> Tensor:
        return F.normalize(encode_texts(model, tokenizer, texts).mean(0), dim=0)

    sound, damaged = [], []
    for category in captions.categories():
        sound.append(mean([captions.normal(random, category) for _ in range(_SOUND_CAPTIONS)]))
        kinds = [random.choice([None, *category.defects]) for _ in range(_DAMAGED_CAPTIONS)]
        damaged.append(mean([captions.anomalous(random, category, kind) for kind in kinds]))
    of_kinds = [
        mean([captions.of_kind(random, ANY, kind) for _ in range(_KIND_CAPTIONS)]) for kind in DEFECTS
    ]
    return TextPool(torch.stack(sound), torch.stack(damaged), torch.stack(of_kinds))
