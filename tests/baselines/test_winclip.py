"""WinCLIP around a local CLIP: anomalib's own numbers, no download, any size of images."""

from __future__ import annotations

import builtins
import importlib.util
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baselines import anomaly, openmmlab
from baselines.anomaly import WinClip
from datasets_builders.errors import UserError

# anomalib takes ten seconds to import, so it is only looked for here.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("anomalib") is None, reason="needs the extra anomaly"),
]


@pytest.fixture(scope="module")
def clip() -> Any:
    """A CLIP of random weights: 32 x 32 pixels, a grid of 4 x 4."""
    openmmlab.activate()
    import open_clip
    import torch

    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    ).eval()


def _preprocess(images: Sequence[NDArray[np.uint8]]) -> Any:
    import torch

    return torch.cat(
        [
            torch.nn.functional.interpolate(
                torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255, size=(32, 32)
            )
            for image in images
        ]
    )


@pytest.fixture
def winclip(clip: Any, monkeypatch: pytest.MonkeyPatch) -> WinClip:
    import open_clip

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return WinClip(clip, _preprocess, open_clip.SimpleTokenizer(), {"model": "small"})


def _images(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (20 + 9 * index, 40, 3), dtype=np.uint8) for index in range(count)]


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_maps_and_scores_are_those_of_the_library(winclip: WinClip, shots: int) -> None:
    import torch

    images = _images(6)
    model = winclip.fit("steel strip", images[:shots])
    assert model.k_shot == shots
    found = winclip.score(images, model)
    assert found.maps.shape == (6, 4, 4)
    assert found.maps.dtype == found.image_scores.dtype == np.float32
    with torch.no_grad():
        own = model(_preprocess(images))
    large = torch.nn.functional.interpolate(
        torch.from_numpy(found.maps)[:, None], size=(32, 32), mode="bilinear"
    )[:, 0]
    assert torch.allclose(large, own.anomaly_map, atol=1e-6)
    assert torch.allclose(torch.from_numpy(found.image_scores), own.pred_score, atol=1e-6)


def test_a_window_sees_its_own_patches_alone(winclip: WinClip, clip: Any) -> None:
    """Every window's feature is that of an image of which only the window's tokens are left."""
    import torch

    model = winclip.fit("steel strip", [])
    batch = _preprocess(_images(2))
    visual = clip.visual
    with torch.no_grad():
        _, windows, _ = model.encode_image(batch)
        patches = visual.conv1(batch).flatten(2).transpose(1, 2)
        first = visual.class_embedding.expand(len(batch), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + visual.positional_embedding
        for found, masks in zip(windows, model.masks, strict=True):
            for place, mask in enumerate(masks.T):
                kept = torch.cat([tokens[:, :1], tokens[:, mask + 1]], dim=1)
                for image in range(len(batch)):
                    x = visual.transformer(visual.ln_pre(kept[image : image + 1]))
                    expected = visual.ln_post(x)[:, 0] @ visual.proj
                    torch.testing.assert_close(found[image, place][None], expected, atol=1e-5, rtol=0)


def test_the_text_features_are_those_of_the_phrase(winclip: WinClip, clip: Any) -> None:
    import torch
    from anomalib.models.image.winclip.prompting import create_prompt_ensemble
    from open_clip.tokenizer import tokenize

    model = winclip.fit("steel strip", [])
    with torch.no_grad():
        means = [clip.encode_text(tokenize(texts)).mean(0) for texts in create_prompt_ensemble("steel strip")]
    assert torch.allclose(model.text_embeddings, torch.stack(means), atol=1e-6)


def test_a_normal_image_is_less_anomalous_than_with_other_normal_images(winclip: WinClip) -> None:
    images = _images(4)
    own = winclip.score(images[:1], winclip.fit("steel strip", images[:1]))
    other = winclip.score(images[:1], winclip.fit("steel strip", images[1:]))
    assert own.maps.mean() < other.maps.mean()
    assert own.image_scores[0] < other.image_scores[0]


def test_categories_do_not_share_a_model(winclip: WinClip) -> None:
    images = _images(3)
    first = winclip.fit("steel strip", images[:1])
    before = winclip.score(images, first)
    winclip.fit("wooden board", images[1:])
    assert np.array_equal(winclip.score(images, first).maps, before.maps)


def test_it_names_the_library_and_the_encoder(winclip: WinClip) -> None:
    from importlib.metadata import version

    assert winclip.identity == {
        "method": "winclip",
        "version": anomaly.VERSION,
        "anomalib": version("anomalib"),
        "encoder": {"model": "small"},
    }


def test_without_anomalib_it_says_what_to_install(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("anomalib"):
            raise ModuleNotFoundError("No module named 'anomalib'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'agssp-bench\[anomaly\]'"):
        anomaly.WinClip(clip, _preprocess, lambda texts: texts, {})
