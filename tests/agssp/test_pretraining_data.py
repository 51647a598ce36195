"""Views of corpus images: maps stay on their images, draws depend on seed and number alone, memory is bounded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from made_maps import defect_map, map_row, store_maps
from PIL import Image

from agssp import pretraining_data as data
from agssp import recipes
from agssp.recipes import Crop, Masking, Photometry, View
from agssp.upsampling import upsample
from datasets_builders.errors import UserError


def made_corpus(sizes: list[tuple[int, int]], seed: int = 0) -> Any:
    import datasets

    from datasets_builders.corpus.shards import corpus_features

    rng = np.random.default_rng(seed)
    rows = []
    for index, (width, height) in enumerate(sizes):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "image_id": f"made/{index}",
                "category": index % 3,
                "source": "made",
                "licence": "none",
            }
        )
    return datasets.Dataset.from_list(rows, features=corpus_features(["a", "b", "c"]))


def recipe(*views: View, size: int = 64, **changes: Any) -> recipes.BackbonePretraining:
    mock = recipes.backbone_pretraining("mock-v1", "csp_darknet", "cls")
    return mock.model_copy(update={"views": views or mock.views, "image_size": size, **changes})


RESIZED = Crop(resize=(256, 1024))
BY_AREA = Crop(area=(0.2, 1.0))


@pytest.mark.parametrize("crop", [RESIZED, BY_AREA, Crop(resize=(40, 90), flip=1.0)])
def test_a_map_equal_to_a_channel_stays_equal_after_1000_draws(crop: Crop) -> None:
    rng = np.random.default_rng(1)
    np.random.seed(0)
    flips = 0
    for _ in range(1000):
        width, height = (int(side) for side in rng.integers(1, 300, 2))
        # The map has a value for every pixel, the first channel of the image is this map.
        values = rng.random((height, width), np.float32)
        image = np.stack([values, rng.random((height, width), np.float32), values], axis=2)
        geometry = data.draw(crop, (width, height), 64)
        view = geometry.of_image(image, 64)
        np.testing.assert_array_equal(view[:, :, 0], geometry.of_map(values, (width, height), 64))
        assert view.shape == (64, 64, 3)
        flips += geometry.flip
    assert flips == 1000 if crop.flip == 1 else 400 < flips < 600


def test_a_map_follows_as_if_it_were_resized_to_the_whole_image_first() -> None:
    np.random.seed(3)
    values = defect_map(np.random.default_rng(0))
    whole = upsample(values, (200, 120))
    for _ in range(100):
        geometry = data.draw(RESIZED, (200, 120), 96)
        np.testing.assert_array_equal(geometry.of_map(values, (200, 120), 96), geometry.of_image(whole, 96))


def test_a_mark_of_the_image_is_where_its_map_peaks_in_every_item(tmp_path: Path) -> None:
    """The whole way: from stored image and stored map to the batch's tensors."""
    corpus = made_corpus([(160, 120)])
    pixels = np.full((120, 160, 3), 30, np.uint8)
    grid = np.zeros((12, 16), np.float32)
    grid[3:6, 10:12] = 1.0
    pixels[upsample(grid, (160, 120)) > 0.5] = 250
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    corpus = corpus.map(lambda row: {"image": {"bytes": buffer.getvalue(), "path": None}})
    maps = store_maps(tmp_path / "maps", [map_row("made/0", grid, (160, 120))])
    view = View(crop=Crop(resize=(70, 110)))
    drawn = data.Corpus(corpus, maps, recipe(view, kept_side=1024), None, seed=0)
    seen = 0
    for number in range(60):
        item = drawn[0, number]
        bright, hot = item["views"][0][0].numpy() > 140, item["maps"] > 0.5
        union = (bright | hot).sum()
        if union > 20:
            assert (bright & hot).sum() / union > 0.8
            seen += 1
    assert seen > 30


class TestDraw:
    def test_resize_then_crop_shows_the_stated_share_at_every_place(self) -> None:
        np.random.seed(0)
        drawn = [data.draw(RESIZED, (1000, 500), 224) for _ in range(3000)]
        for geometry in drawn:
            across, down = geometry.width / 1000, geometry.height / 500
            assert 224 / 1024 - 0.001 <= across <= 224 / 256 + 0.001
            assert across == pytest.approx(down, abs=0.002)
            assert 0 <= geometry.left <= 1000 - geometry.width
            assert 0 <= geometry.top <= 500 - geometry.height
        # Uniform in the side of the square, not in the share.
        sides = 224 / np.array([geometry.width / 1000 for geometry in drawn])
        assert np.mean(sides) == pytest.approx((256 + 1024) / 2, rel=0.02)
        freedom = np.array([g.left / (1000 - g.width) for g in drawn])
        assert np.mean(freedom) == pytest.approx(0.5, abs=0.03)

    def test_area_and_aspect_are_within_their_bounds(self) -> None:
        np.random.seed(0)
        for _ in range(1000):
            geometry = data.draw(Crop(area=(0.2, 0.5)), (400, 400), 64)
            area = geometry.width * geometry.height / 160000
            assert 0.19 < area < 0.51
            assert 0.74 < geometry.width / geometry.height < 1.35

    @pytest.mark.parametrize("extent", [(1, 1), (1, 500), (3000, 2)])
    def test_images_of_any_shape_have_views(self, extent: tuple[int, int]) -> None:
        for crop in (RESIZED, BY_AREA):
            image = np.zeros((extent[1], extent[0], 3), np.uint8)
            assert data.draw(crop, extent, 64).of_image(image, 64).shape == (64, 64, 3)


class TestCorpus:
    def test_items_have_the_stated_shapes(self, tmp_path: Path) -> None:
        corpus = made_corpus([(90, 70), (40, 200)])
        rng = np.random.default_rng(0)
        maps = store_maps(
            tmp_path / "maps",
            [map_row("made/1", defect_map(rng), (40, 200)), map_row("made/0", defect_map(rng), (90, 70))],
        )
        views = (View(crop=RESIZED), View(crop=BY_AREA, photometry=Photometry(jitter=1, grey=1, blur=1)))
        item = data.Corpus(corpus, maps, recipe(*views), Masking(block=16, ratio=0.5), seed=0)[1, 0]
        assert [(v.shape, v.dtype) for v in item["views"]] == [((3, 64, 64), torch.uint8)] * 2
        assert item["maps"].shape == (64, 64)
        assert item["maps"].dtype == np.float32
        assert item["labels"] == 1
        assert item["masks"].shape == (16, 16)
        assert item["masks"].sum() == 8 * 16  # half of the 16 blocks of 4 x 4 patches
        assert torch.equal(item["views"][1][0], item["views"][1][1]), "grey"

    def test_maps_are_found_by_id_not_by_place(self, tmp_path: Path) -> None:
        corpus = made_corpus([(50, 50), (50, 50)])
        levels = {"made/1": 0.25, "made/0": 0.75, "made/other": 0.5}
        rows = [map_row(name, np.full((4, 4), level), (50, 50)) for name, level in levels.items()]
        drawn = data.Corpus(corpus, store_maps(tmp_path / "maps", rows), recipe(), None, seed=0)
        assert np.unique(drawn[0, 0]["maps"]) == 0.75
        assert np.unique(drawn[1, 0]["maps"]) == 0.25

    def test_an_image_without_a_map_is_named(self, tmp_path: Path) -> None:
        maps = store_maps(tmp_path / "maps", [map_row("made/0", np.ones((4, 4)), (50, 50))])
        with pytest.raises(
            UserError, match=r"no anomaly map of 1 of the corpus's 2 images, such as 'made/1'"
        ):
            data.Corpus(made_corpus([(50, 50), (50, 50)]), maps, recipe(), None, seed=0)

    def test_a_map_of_another_image_size_is_refused(self, tmp_path: Path) -> None:
        maps = store_maps(tmp_path / "maps", [map_row("made/0", np.ones((4, 4)), (50, 40))])
        with pytest.raises(UserError, match=r"50 x 40.*40 x 50"):
            data.Corpus(made_corpus([(40, 50)]), maps, recipe(), None, seed=0)[0, 0]

    def test_draws_depend_on_seed_image_and_number_alone(self) -> None:
        corpus = made_corpus([(90, 70)] * 3)
        drawn, again = (data.Corpus(corpus, None, recipe(), None, seed=5) for _ in range(2))
        torch.manual_seed(0)
        first = drawn[1, 7]["views"][0]
        again[0, 3], torch.rand(9), np.random.random(4)
        before = torch.get_rng_state()
        assert torch.equal(again[1, 7]["views"][0], first)
        assert torch.equal(torch.get_rng_state(), before), "the model's draws are not disturbed"
        assert not torch.equal(again[1, 8]["views"][0], first)
        assert not torch.equal(data.Corpus(corpus, None, recipe(), None, seed=6)[1, 7]["views"][0], first)

    def test_memory_is_bounded_and_changes_nothing(self, monkeypatch) -> None:
        corpus = made_corpus([(90, 70)] * 4)
        decoded = []
        decode = data.decode_image
        monkeypatch.setattr(data, "decode_image", lambda content: decoded.append(1) or decode(content))
        roomy = data.Corpus(corpus, None, recipe(), None, seed=0)
        tight = data.Corpus(corpus, None, recipe(), None, seed=0, kept_bytes=2 * 90 * 70 * 3)
        for drawn, expected in ((roomy, 4), (tight, 2 + 3 * 2)):
            decoded.clear()
            views = [drawn[index, turn]["views"][0] for turn in range(3) for index in range(4)]
            assert len(decoded) == expected
            if drawn is roomy:
                kept = views
        assert all(torch.equal(a, b) for a, b in zip(kept, views, strict=True))

    def test_large_images_are_kept_small(self) -> None:
        drawn = data.Corpus(made_corpus([(300, 100)]), None, recipe(kept_side=120), None, seed=0)
        image, _ = drawn._image(0)
        assert image.shape == (40, 120, 3)
        original = np.asarray(
            drawn._rows.cast_column("image", made_corpus([(1, 1)]).features["image"])[0]["image"]
        )
        expected = cv2.resize(original, (120, 40), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(image, expected)


class TestEndlessSampler:
    def test_every_image_comes_once_a_pass_and_passes_differ(self) -> None:
        sampler = data.EndlessSampler(10, 4, seed=0)
        drawn = []
        for epoch in range(5):
            sampler.set_epoch(epoch)
            piece = list(sampler)
            assert len(piece) == len(sampler) == 4
            drawn += piece
        assert [number for _, number in drawn] == list(range(20))
        images = [image for image, _ in drawn]
        assert sorted(images[:10]) == sorted(images[10:]) == list(range(10))
        assert images[:10] != images[10:]

    def test_an_epoch_may_hold_several_passes_and_is_the_same_whenever_asked(self) -> None:
        sampler = data.EndlessSampler(3, 8, seed=1)
        sampler.set_epoch(2)
        third = list(sampler)
        other = data.EndlessSampler(3, 8, seed=1)
        other.set_epoch(2)
        assert list(other) == third
        assert list(data.EndlessSampler(3, 8, seed=2)) != list(data.EndlessSampler(3, 8, seed=1))

    def test_ranks_share_an_epoch(self, monkeypatch) -> None:
        whole = list(data.EndlessSampler(10, 8, seed=0))
        monkeypatch.setattr(data, "get_world_size", lambda: 2)
        parts = []
        for rank in range(2):
            monkeypatch.setattr(data, "get_rank", lambda rank=rank: rank)
            sampler = data.EndlessSampler(10, 8, seed=0)
            assert len(list(sampler)) == len(sampler) == 4
            parts.append(list(sampler))
        assert sorted(parts[0] + parts[1], key=lambda item: item[1]) == whole
