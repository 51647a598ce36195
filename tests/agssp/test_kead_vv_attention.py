"""The features of both streams against the literal version and open_clip's own forward."""

from __future__ import annotations

from collections.abc import Callable

import literal_kead
import numpy as np
import pytest
import torch
from kead_models import RandomClip, make_random_clip
from safetensors.torch import load_file

from agssp.kead.encoder import Encoder, load_encoder

TOLERANCE = 1e-5
MODELS = {
    # The width and patches of ViT-B-16-plus-240; test_kead_full_size.py has all of it.
    "plus-240": {"image_size": 80, "layers": 3, "width": 896, "patch_size": 16, "taps": [1, 2, 3], "dual_from": 2},
    "quick-gelu": {
        "image_size": 56, "layers": 5, "width": 96, "head_width": 32, "patch_size": 14,
        "taps": [1, 2, 4, 5], "dual_from": 2, "quick_gelu": True,
    },
    "layer-scale": {
        "image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8,
        "ls_init_value": 0.1, "mlp_ratio": 3.0, "taps": [2, 3], "dual_from": 1,
    },
    "no-pre-norm": {
        "image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8, "no_ln_pre": True,
        "taps": [1, 3], "dual_from": 3,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RandomClip, Encoder]]:
    made: dict[str, tuple[RandomClip, Encoder]] = {}

    def get(name: str) -> tuple[RandomClip, Encoder]:
        if name not in made:
            clip = make_random_clip(tmp_path_factory.mktemp("clip") / name, **MODELS[name])
            made[name] = clip, load_encoder(str(clip.folder), precision="fp32")
        return made[name]

    return get


def pixels(encoder: Encoder, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, 3, encoder.image_size, encoder.image_size), generator=generator)


def literal(
    clip: RandomClip, batch: torch.Tensor, **switches: bool
) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    state = load_file(clip.folder / "weights.safetensors")
    return [literal_kead.vision_features(state, image, **clip.literal, **switches) for image in batch.numpy()]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "switches",
    [
        {"vv": True, "layer_aliasing": False},
        {"vv": True, "layer_aliasing": True},
        {"vv": False, "layer_aliasing": False},
    ],
    ids=["vv", "aliasing", "plain"],
)
def test_features_equal_the_literal_version(models: Callable, name: str, switches: dict[str, bool]) -> None:
    clip, encoder = models(name)
    batch = pixels(encoder, 2)
    features = encoder.encode_images(batch, **switches)
    expected = literal(clip, batch, **switches)
    for image, (cls, patches) in enumerate(expected):
        np.testing.assert_allclose(features.cls[image].numpy(), cls, atol=TOLERANCE)
        for got, wanted in zip(features.patches, patches, strict=True):
            np.testing.assert_allclose(got[image].numpy(), wanted, atol=TOLERANCE)
    assert encoder.grid[0] * encoder.grid[1] == features.patches[0].shape[1]


@pytest.mark.parametrize("name", MODELS)
def test_everything_off_is_open_clips_own_forward(models: Callable, name: str) -> None:
    import open_clip

    clip, encoder = models(name)
    batch = pixels(encoder, 2)
    config = MODELS[name]
    vision = {key: value for key, value in config.items() if key not in ("taps", "dual_from", "quick_gelu")}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    model = open_clip.CLIP(24, vision, text, quick_gelu=clip.quick_gelu).eval()
    model.load_state_dict(load_file(clip.folder / "weights.safetensors"))
    with torch.no_grad():
        out = model.visual.forward_intermediates(
            batch,
            indices=[tap - 1 for tap in clip.taps],
            normalize_intermediates=True,
            output_fmt="NLC",
        )
        whole = torch.nn.functional.normalize(model.encode_image(batch), dim=-1)
        patches = [
            torch.nn.functional.normalize(tokens @ model.visual.proj, dim=-1)
            for tokens in out["image_intermediates"]
        ]
    features = encoder.encode_images(batch, vv=False, layer_aliasing=False)
    torch.testing.assert_close(features.cls, whole, atol=TOLERANCE, rtol=0)
    for got, wanted in zip(features.patches, patches, strict=True):
        torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)


def test_layer_aliasing_makes_the_dual_taps_identical(models: Callable) -> None:
    _, encoder = models("quick-gelu")
    batch = pixels(encoder, 2)
    aliased = encoder.encode_images(batch, vv=True, layer_aliasing=True).patches
    copied = encoder.encode_images(batch, vv=True, layer_aliasing=False).patches
    assert torch.equal(aliased[0], copied[0]), "the tap before the dual stream starts is the plain one"
    assert torch.equal(aliased[1], aliased[3])
    assert torch.equal(aliased[2], aliased[3])
    assert torch.equal(aliased[3], copied[3])
    assert not torch.allclose(copied[1], copied[2], atol=1e-3)


@pytest.mark.parametrize("vv", [True, False])
@pytest.mark.parametrize("name", ["quick-gelu", "layer-scale"])
def test_patches_do_not_depend_on_whether_the_image_feature_is_wanted(
    models: Callable, name: str, vv: bool
) -> None:
    _, encoder = models(name)
    batch = pixels(encoder, 2)
    alone = encoder.encode_images(batch, vv=vv, layer_aliasing=False, cls=False)
    both = encoder.encode_images(batch, vv=vv, layer_aliasing=False)
    assert alone.cls is None
    for got, wanted in zip(alone.patches, both.patches, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_an_image_gets_the_same_features_in_any_batch(models: Callable) -> None:
    _, encoder = models("plus-240")
    batch = pixels(encoder, 8)
    together = encoder.encode_images(batch, vv=True, layer_aliasing=False)
    for place in (0, 5):
        alone = encoder.encode_images(batch[place : place + 1], vv=True, layer_aliasing=False)
        torch.testing.assert_close(alone.cls[0], together.cls[place], atol=1e-6, rtol=0)
        for got, wanted in zip(alone.patches, together.patches, strict=True):
            torch.testing.assert_close(got[0], wanted[place], atol=1e-6, rtol=0)


def test_lower_precision_stays_close(models: Callable) -> None:
    clip, encoder = models("quick-gelu")
    batch = pixels(encoder, 4)
    exact = encoder.encode_images(batch, vv=True, layer_aliasing=False)
    lower = load_encoder(str(clip.folder), precision="bf16").encode_images(
        batch, vv=True, layer_aliasing=False
    )
    for got, wanted in zip((lower.cls, *lower.patches), (exact.cls, *exact.patches), strict=True):
        assert got.dtype == torch.float32
        assert (got * wanted).sum(dim=-1).min() > 0.999
        assert not torch.equal(got, wanted)
