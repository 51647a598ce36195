"""KeAD from images and a category's name to maps, against the literal version, and what a user relies on."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import literal_kead
import numpy as np
import pytest
import torch
from kead_models import RandomClip, make_random_clip, random_images
from safetensors.torch import load_file

from agssp.kead.encoder import Encoder, load_encoder
from agssp.kead.kead import KeAD, KeADSettings
from agssp.kead.knowledge import lookup
from agssp.kead.prompts import assemble
from datasets_builders.errors import UserError

CATEGORY = "steel_pipe"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> RandomClip:
    return make_random_clip(
        tmp_path_factory.mktemp("kead") / "clip", image_size=40, layers=4, width=64, head_width=16, patch_size=8,
        taps=[1, 2, 4], dual_from=2, quick_gelu=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoder(clip: RandomClip) -> Encoder:
    return load_encoder(str(clip.folder), precision="fp32")


def literal_score(
    clip: RandomClip, encoder: Encoder, settings: KeADSettings, images: list, normals: list
) -> tuple[list[np.ndarray], list[float]]:
    """Maps and scores by the literal version; only the resize and the text encoder are the package's."""
    state = load_file(clip.folder / "weights.safetensors")

    def features(image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        pixels = encoder.preprocess([image])[0].numpy()
        return literal_kead.vision_features(
            state, pixels, **clip.literal, vv=settings.vv, layer_aliasing=settings.layer_aliasing
        )

    prompts = assemble(lookup(CATEGORY), descriptions=settings.descriptions)
    normal, anomalous, empty = (
        encoder.encode_texts(texts).numpy() for texts in (prompts.normal, prompts.anomalous, prompts.empty)
    )
    texts = literal_kead.text_pair(normal, anomalous, empty if settings.redundancy_removal else None)
    memories = None
    if normals:
        stored = [features(image)[1] for image in normals]
        memories = [np.concatenate([layers[tap] for layers in stored]) for tap in range(len(clip.taps))]
    results = [
        literal_kead.anomaly(
            *features(image),
            texts,
            memories,
            temperature=settings.temperature,
            released=settings.image_score == "released",
        )
        for image in images
    ]
    return [result[0] for result in results], [result[1] for result in results]


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"vv": False, "descriptions": False},
        {"layer_aliasing": True, "redundancy_removal": True, "image_score": "released"},
        {"temperature": 0.01},
    ],
    ids=["paper", "off", "released", "cold"],
)
def test_maps_and_scores_are_the_literal_ones(
    clip: RandomClip, encoder: Encoder, switches: dict[str, Any], shots: int
) -> None:
    settings = KeADSettings(**switches)
    kead = KeAD(encoder, settings)
    images, normals = random_images(2), random_images(shots, seed=9, size=(31, 64))
    result = kead.score(images, kead.fit(CATEGORY, normals))
    maps, scores = literal_score(clip, encoder, settings, images, normals)
    assert result.maps.dtype == result.image_scores.dtype == np.float32
    assert result.maps.shape == (2, 5, 5)
    np.testing.assert_allclose(result.maps.reshape(2, -1), maps, atol=1e-5)
    np.testing.assert_allclose(result.image_scores, scores, atol=1e-5)
    assert result.maps.min() >= 0
    assert result.maps.max() <= (2 if shots else 1)


def test_scores_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    kead = KeAD(encoder)
    model = kead.fit(CATEGORY, random_images(1, seed=5))
    images = [*random_images(6), *random_images(5, seed=1, size=(64, 33))]
    together = kead.score(images, model)
    assert len(images) > encoder.batch_size
    alone = [kead.score([image], model) for image in images]
    np.testing.assert_allclose(together.maps, np.concatenate([one.maps for one in alone]), atol=2e-6)
    np.testing.assert_allclose(
        together.image_scores, np.concatenate([one.image_scores for one in alone]), atol=2e-6
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("fp16", 2e-2)])
@pytest.mark.parametrize("shots", [0, 2])
def test_a_gpu_gives_the_maps_of_the_cpu(
    clip: RandomClip, encoder: Encoder, precision: str, tolerance: float, shots: int
) -> None:
    images = random_images(7)
    found = [
        KeAD(one).score(images[2:], KeAD(one).fit(CATEGORY, images[:shots]))
        for one in (load_encoder(str(clip.folder), device="cuda", precision=precision), encoder)
    ]
    np.testing.assert_allclose(found[0].maps, found[1].maps, atol=tolerance)
    np.testing.assert_allclose(found[0].image_scores, found[1].image_scores, atol=tolerance)


def test_the_same_call_gives_the_same_bytes(encoder: Encoder) -> None:
    def run() -> bytes:
        kead = KeAD(encoder)
        result = kead.score(random_images(5), kead.fit(CATEGORY, random_images(2, seed=3)))
        return result.maps.tobytes() + result.image_scores.tobytes()

    assert run() == run()


@pytest.mark.parametrize("shots", [1, 3, 11])
def test_memory_holds_exactly_the_given_images(encoder: Encoder, shots: int) -> None:
    kead = KeAD(encoder)
    normals = random_images(shots, seed=4)
    model = kead.fit(CATEGORY, normals)
    assert model.shots == shots
    assert [len(tap) for tap in model.memory] == [shots * 25] * 3
    zero = kead.score(normals, kead.fit(CATEGORY, []))
    few = kead.score(normals, model)
    # An image in memory is at distance 0 from it, so its few-shot part vanishes; another image's does not.
    np.testing.assert_allclose(few.maps, zero.maps, atol=1e-5)
    other = random_images(1, seed=77)
    difference = kead.score(other, model).maps - kead.score(other, kead.fit(CATEGORY, [])).maps
    assert difference.min() > 1e-3


def test_zero_shot_needs_no_images_and_scores_by_the_whole_image(encoder: Encoder) -> None:
    kead = KeAD(encoder)
    model = kead.fit(CATEGORY, [])
    assert model.memory == ()
    assert model.shots == 0
    features = encoder.encode_images(encoder.preprocess(random_images(3)), vv=True, layer_aliasing=False)
    texts = model.texts
    expected = torch.softmax(features.cls @ texts.T / 0.07, dim=-1)[:, 1]
    np.testing.assert_allclose(kead.score(random_images(3), model).image_scores, expected, atol=1e-6)


def test_no_images_give_no_maps(encoder: Encoder) -> None:
    kead = KeAD(encoder)
    result = kead.score([], kead.fit(CATEGORY, []))
    assert result.maps.shape == (0, 5, 5)
    assert result.image_scores.shape == (0,)


def test_texts_are_encoded_once_for_each_category(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    kead = KeAD(encoder)
    calls = []
    encode = encoder.encode_texts
    monkeypatch.setattr(encoder, "encode_texts", lambda texts: calls.append(texts) or encode(texts))
    first = kead.fit(CATEGORY, [])
    assert len(calls) == 2
    again = kead.fit(CATEGORY, random_images(1))
    assert len(calls) == 2
    assert torch.equal(first.texts, again.texts)
    kead.fit("wood", [])
    assert len(calls) == 4


def test_an_unknown_category_is_metal_in_general(encoder: Encoder) -> None:
    model = KeAD(encoder).fit("no such thing", [])
    assert model.category.fallback
    assert not KeAD(encoder).fit(CATEGORY, []).category.fallback


def test_identity_tells_every_switch(encoder: Encoder) -> None:
    switched = {
        "vv": False, "descriptions": False, "layer_aliasing": True, "redundancy_removal": True,
        "image_score": "released", "temperature": 0.1,
    }  # fmt: skip
    assert set(switched) == {field.name for field in dataclasses.fields(KeADSettings)}
    identities = [KeAD(encoder).identity]
    identities += [KeAD(encoder, KeADSettings(**{key: value})).identity for key, value in switched.items()]
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 7


def test_a_long_description_is_refused(encoder: Encoder, tmp_path: Any) -> None:
    extra = tmp_path / "mine.yaml"
    extra.write_text(
        "categories:\n  mine:\n    like: steel_pipe\n    described:\n      crack: ['"
        + "xq " * 80
        + "long']\n"
    )
    with pytest.raises(UserError, match="tokens of the text encoder and would be cut"):
        KeAD(encoder, knowledge=extra).fit("mine", [])


@pytest.mark.parametrize(
    "settings", [{"image_score": "mean"}, {"temperature": 0.0}, {"temperature": float("nan")}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        KeADSettings(**settings)
