"""ViT-B-16-plus-240 at its full size, from a file as a user brings it, against the literal version."""

from __future__ import annotations

from pathlib import Path

import literal_kead
import numpy as np
import pytest
import torch
from kead_models import random_images, randomise
from safetensors.torch import save_file

from agssp.kead.encoder import Encoder, load_encoder
from agssp.kead.kead import KeAD, KeADSettings
from agssp.kead.knowledge import lookup
from agssp.kead.prompts import assemble

pytestmark = pytest.mark.slow

LITERAL = {"heads": 14, "patch": 16, "quick_gelu": False, "taps": [3, 6, 9, 12], "dual_from": 4}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16-plus-240"))
    randomise(model, seed=1)
    path = tmp_path_factory.mktemp("weights") / "open_clip_model.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def encoder(weights: Path) -> Encoder:
    return load_encoder("base", weights=weights, precision="fp32")


def test_few_shot_maps_are_the_literal_ones(encoder: Encoder) -> None:
    settings = KeADSettings(descriptions=False)
    kead = KeAD(encoder, settings)
    image, normal = random_images(2, size=(300, 200))
    result = kead.score([image], kead.fit("wood", [normal]))
    assert result.maps.shape == (1, 15, 15)

    state = {key: value.numpy() for key, value in encoder.clip.state_dict().items()}
    (cls, patches), (_, memories) = (
        literal_kead.vision_features(state, encoder.preprocess([one])[0].numpy(), **LITERAL)
        for one in (image, normal)
    )
    prompts = assemble(lookup("wood"), descriptions=False)
    texts = literal_kead.text_pair(
        encoder.encode_texts(prompts.normal).numpy(), encoder.encode_texts(prompts.anomalous).numpy()
    )
    expected, score = literal_kead.anomaly(cls, patches, texts, memories)
    np.testing.assert_allclose(result.maps.reshape(-1), expected, atol=1e-5)
    np.testing.assert_allclose(result.image_scores[0], score, atol=1e-5)


def test_texts_are_open_clips_own(encoder: Encoder) -> None:
    import open_clip

    texts = ["a photo of a flawless steel pipe", "a dent"]
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-B-16-plus-240")(texts)
        expected = encoder.clip.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encoder.encode_texts(texts), expected, atol=1e-5, rtol=0)


def test_lower_precision_moves_a_map_by_little(encoder: Encoder, weights: Path) -> None:
    lower = load_encoder("base", weights=weights, precision="bf16")
    images = random_images(2)
    exact, close = (
        one.encode_images(encoder.preprocess(images), vv=True, layer_aliasing=False)
        for one in (encoder, lower)
    )
    for got, wanted in zip(close.patches, exact.patches, strict=True):
        assert (got * wanted).sum(dim=-1).min() > 0.999
