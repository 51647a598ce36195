"""The sources of maps that look at the images: KeAD and the memory of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from kead_models import make_random_clip, random_images
from map_cases import CORPUS
from torch import nn

from agssp.kead.encoder import load_encoder
from agssp.kead.kead import KeAD, KeADSettings
from agssp.map_inputs import MapInput, open_images
from agssp.map_sources import SourceOptions, open_source
from agssp.mapping import make_maps
from agssp.sources import memory
from agssp.sources.memory import Memory, MemorySource
from datasets_builders.errors import UserError


def inputs(images: list[np.ndarray]) -> list[MapInput]:
    return [MapInput(f"{number}", "plate", image) for number, image in enumerate(images)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clip = make_random_clip(
        tmp_path_factory.mktemp("clip") / "small",
        taps=[1, 2],
        dual_from=2,
        width=32,
        layers=2,
        head_width=16,
        patch_size=16,
        image_size=64,
    )
    return clip.folder


@pytest.mark.parametrize("settings", [{}, {"vv": False, "temperature": 0.1}])
def test_kead_as_a_source_is_kead(clip_folder: Path, tmp_path: Path, settings: dict) -> None:
    """The maps of a corpus, against KeAD called image by image."""
    source = open_source(f"kead:{clip_folder}", options=SourceOptions(precision="fp32", settings=settings))
    store = make_maps("corpus_synthetic/n6_k3_s0", source, out=tmp_path / "maps", shots=1)
    kead = KeAD(load_encoder(str(clip_folder), precision="fp32"), KeADSettings(**settings))
    assert store.request["source"].items() > kead.identity.items()  # and the words that it was told
    images = open_images("corpus_synthetic/n6_k3_s0")
    decoded = {one.image_id: one.decode().image for one in images.read(range(6))}
    for row in store:
        model = kead.fit(row.category, [decoded[image_id] for image_id in store.normals[row.category]])
        expected = kead.score([decoded[row.image_id]], model)
        np.testing.assert_allclose(row.map, expected.maps[0], atol=1e-3)
        assert row.image_score == pytest.approx(float(expected.image_scores[0]), abs=1e-4)


def test_zero_shot_kead_rates_images(clip_folder: Path) -> None:
    source = open_source(f"kead:{clip_folder}")
    kead = KeAD(load_encoder(str(clip_folder)))
    images = random_images(3)
    expected = kead.score(images, kead.fit("plate", [])).image_scores
    np.testing.assert_allclose(source.rate("plate", inputs(images)), expected, atol=1e-6)  # type: ignore[attr-defined]
    features = source.embed(inputs(images))  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_categories_that_kead_does_not_know_are_said_once(
    clip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = open_images(CORPUS)
    images.categories = ["rolled", "quux"] * 75
    open_source(f"kead:{clip_folder}").check(images)
    assert [record.getMessage() for record in caplog.records] == [
        "Described as metal in general, for want of knowledge: quux"
    ]


@pytest.fixture(scope="module")
def lite0() -> MemorySource:
    return MemorySource()


def test_the_network_is_trained_on_imagenet() -> None:
    """The features of the whole network, with the package's own classifier on top, name photographs."""
    from baselines import weights

    source = MemorySource()
    resolved = weights.resolve("imagenet-lite0")
    state = torch.load(resolved.path, weights_only=True)
    head = nn.Conv2d(320, 1280, 1, bias=False)
    head.load_state_dict({"weight": state["_conv_head.weight"]})
    norm = nn.BatchNorm2d(1280, eps=1e-3).eval()
    norm.load_state_dict({key[5:]: value for key, value in state.items() if key.startswith("_bn1.")})
    # ImageNet's classes: cats of some kind, and what a cup of coffee may be taken for.
    for picture, classes in (
        (skimage.data.chelsea(), range(281, 288)),
        (skimage.data.coffee(), (504, 967, 968, 925)),
    ):
        with torch.inference_mode():
            pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
            side = min(pixels.shape[2:])
            pixels = nn.functional.interpolate(
                pixels[..., :side, -side:], (224, 224), mode="bilinear", antialias=True
            )
            features = nn.functional.relu6(norm(head(source._network(pixels)[2]))).mean(dim=(2, 3))
            scores = features @ state["_fc.weight"].T + state["_fc.bias"]
        assert int(scores.argmax()) in classes


def test_the_memory_against_a_plain_loop(lite0: MemorySource) -> None:
    images = random_images(3, size=(120, 160))
    images[2][40:60, 50:70] = 255
    model = lite0.fit("plate", images[:2])
    found = lite0.score(inputs(images), model)
    assert found.maps.shape == (3, 28, 28)
    assert found.maps.dtype == np.float32

    with torch.inference_mode():
        features = [lite0._features([image]) for image in images]
    patches = []
    for eight, sixteen in features:
        grid = np.zeros((28, 28, 152))
        levels = [
            eight[0].numpy(),
            nn.functional.interpolate(_mean3(sixteen), (28, 28), mode="bilinear")[0].numpy(),
        ]
        for row in range(28):
            for column in range(28):
                around = levels[0][:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                one, two = around.mean(axis=(1, 2)), levels[1][:, row, column]
                joined = np.concatenate([one / np.linalg.norm(one), two / np.linalg.norm(two)])
                grid[row, column] = joined / np.linalg.norm(joined)
        patches.append(grid.reshape(784, 152))
    normal = np.concatenate(patches[:2])
    np.testing.assert_allclose(model.patches.numpy(), normal, atol=1e-4)
    rest = []
    for index, patch in enumerate(normal):
        image, row, column = index // 784, index % 784 // 28, index % 28
        cosines = normal @ patch
        for other in range(784):
            if abs(other // 28 - row) <= 2 and abs(other % 28 - column) <= 2:
                cosines[image * 784 + other] = -1
        rest.append((1 - cosines.max()) / 2)
    usual = np.quantile(rest, 0.99)
    assert model.usual == pytest.approx(usual, rel=1e-3)
    distances = (1 - (patches[2] @ normal.T).max(axis=1)) / 2
    np.testing.assert_allclose(found.maps[2].ravel(), distances / (distances + usual), atol=2e-3)
    assert found.image_scores[2] == found.maps[2].max()
    assert found.maps[:2].max() < 0.05, "normal samples are their own neighbours"


def _mean3(level: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(level, 3, 1, 1, count_include_pad=False)


def test_a_blot_stands_out(lite0: MemorySource) -> None:
    plain = [np.full((96, 96, 3), 120, np.uint8) + noise for noise in
             np.random.default_rng(0).integers(0, 12, (3, 96, 96, 3), np.uint8)]  # fmt: skip
    plain[2][60:72, 24:36] = 10
    found = lite0.score(inputs(plain), lite0.fit("plate", plain[:1]))
    row, column = np.unravel_index(found.maps[2].argmax(), (28, 28))
    assert 60 / 96 * 28 - 1 <= row <= 72 / 96 * 28 + 1
    assert 24 / 96 * 28 - 1 <= column <= 36 / 96 * 28 + 1
    assert found.image_scores[2] > found.image_scores[1] + 0.1
    assert found.maps.min() >= 0
    assert found.maps.max() < 1


def test_copies_as_samples_leave_a_scale(lite0: MemorySource) -> None:
    grey = np.full((64, 64, 3), 90, np.uint8)
    model = lite0.fit("plate", [grey, grey])
    assert isinstance(model, Memory)
    assert model.usual > 0
    assert np.isfinite(lite0.score(inputs([grey]), model).maps).all()


def test_the_memory_needs_samples(lite0: MemorySource) -> None:
    assert memory.GRID == 28
    with pytest.raises(UserError, match="--shots 1 or more"):
        lite0.fit("plate", [])


def test_the_users_descriptions_reach_kead_and_the_key(clip_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("categories: {plate: {phrase: brass plate, normal: [shiny], defects: [scratch]}}")
    spec = f"kead:{clip_folder}"
    plain = open_source(spec, options=SourceOptions(precision="fp32"))
    own = open_source(spec, options=SourceOptions(precision="fp32", descriptions=path))
    assert own.fit("plate", []).category.phrase == "brass plate"
    assert own.identity()["knowledge"] != plain.identity()["knowledge"]
    images = inputs(random_images(2))
    scores = [source.score(images, source.fit("plate", [])).maps for source in (plain, own)]
    assert not np.array_equal(*scores)
    with pytest.raises(UserError, match="--descriptions"):
        open_source("random", options=SourceOptions(descriptions=path))
