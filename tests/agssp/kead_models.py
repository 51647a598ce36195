"""Random CLIP models for the tests of KeAD, in the folder form that `load_encoder` takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from baselines import openmmlab

openmmlab.activate()

MEAN, STD = [0.45, 0.5, 0.4], [0.25, 0.3, 0.28]


@dataclass(frozen=True)
class RandomClip:
    """A random model: its configuration and, on disk, its weights."""

    folder: Path
    vision: dict[str, Any]
    quick_gelu: bool
    taps: list[int]
    dual_from: int

    @property
    def literal(self) -> dict[str, Any]:
        """What the literal version wants to know of it."""
        return {
            "heads": self.vision["width"] // self.vision.get("head_width", 64),
            "patch": self.vision["patch_size"],
            "quick_gelu": self.quick_gelu,
            "taps": self.taps,
            "dual_from": self.dual_from,
        }


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter anew, so that no bias is zero and no scale one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            elif name.endswith(("bias", "embedding")):
                parameter.copy_(noise * 0.2)
            else:
                parameter.copy_(1 + noise * 0.2)


def make_random_clip(
    folder: Path,
    *,
    taps: list[int],
    dual_from: int,
    quick_gelu: bool = False,
    seed: int = 0,
    **vision: Any,
) -> RandomClip:
    """Stores a random CLIP model with the given vision tower and a small text tower over CLIP's vocabulary."""
    import open_clip

    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    settings = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}
    model = open_clip.CLIP(**settings)
    randomise(model, seed)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
    config = {"model": settings, "mean": MEAN, "std": STD, "taps": taps, "dual_from": dual_from}
    (folder / "config.json").write_text(json.dumps(config))
    return RandomClip(folder, vision, quick_gelu, taps, dual_from)


def random_images(count: int, seed: int = 0, size: tuple[int, int] = (50, 70)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]
