from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agssp.cli import run_app
from agssp.kead import prompts, vv_attention
from agssp.kead.encoder import load_encoder
from agssp.kead.knowledge import lookup, names
from agssp.map_store import open_maps
from agssp.tiny_clip import captions, command, texts, training
from agssp.tiny_clip.batches import draw_batch
from agssp.tiny_clip.scenes import DEFECTS, Examples, load_examples, render, surfaces
from datasets_builders.errors import UserError
from datasets_builders.synthetic.defects import KINDS
from datasets_builders.synthetic.scenes import config_names
from datasets_builders.synthetic.scenes import render as render_scene

TINY = Path(training.__file__).parents[1] / "kead" / "tiny"


@pytest.fixture(scope="module")
def examples() -> Examples:
    made = [render(7, index) for index in range(6)]
    return Examples(
        np.stack([one.image for one in made]),
        np.stack([one.kinds for one in made]),
        np.array([surfaces().index(one.surface) for one in made], np.uint8),
    )


def small_recipe() -> dict:
    settings = training.recipe()
    settings["model"]["vision_cfg"] |= {"width": 32, "head_width": 16, "layers": 2, "mlp_ratio": 1.0}
    settings["model"]["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1}
    settings |= {"taps": [1, 2], "images": 5}
    settings["text"] |= {"steps": 25, "batch": 32, "warmup": 1}
    settings["image"] |= {"steps": 30, "warmup": 5}
    settings["image"]["windows"] = {"batch": 3, "patches": 4}
    settings["image"]["whole"] = {"share": 0.1, "batch": 2, "patches": 16}
    return settings


def test_weights_of_the_package() -> None:
    tensors = load_file(TINY / "weights.safetensors")
    assert (TINY / "weights.safetensors").stat().st_size <= 12_000_000
    assert 1e6 < sum(tensor.numel() for tensor in tensors.values()) < 6e6
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    encoder = load_encoder("tiny")
    assert (encoder.grid, encoder.image_size) == ((16, 16), 192)
    image = render(1, 0).image
    found = encoder.encode_images(encoder.preprocess([image]), vv=True, layer_aliasing=False)
    assert found.cls is not None
    assert found.cls.shape == (1, 128)
    assert [tuple(tap.shape) for tap in found.patches] == [(1, 256, 128)] * 4


def test_configuration_is_that_of_the_recipe() -> None:
    stored = json.loads((TINY / "config.json").read_text())
    made = training.encoder_config(training.recipe())
    assert {key: stored[key] for key in ("model", "taps", "dual_from")} == {
        key: made[key] for key in ("model", "taps", "dual_from")
    }


def test_every_prompt_fits_and_every_word_is_known() -> None:
    tokenizer = load_encoder("tiny").tokenizer
    for made in {prompts.assemble(lookup(name)) for name in names()}:
        prompts.check_lengths(made, tokenizer, tokenizer.context_length)  # raises for unknown words too


def test_every_caption_fits_and_every_word_is_known() -> None:
    tokenizer, random = load_encoder("tiny").tokenizer, Random(0)
    said, vectors = texts.draw_statements(random, 400)
    said += [captions.of_kind(random, surface, kind) for surface in surfaces() for kind in DEFECTS]
    room = tokenizer.context_length + 1
    assert (tokenizer(said, context_length=room)[:, -1] == 0).all()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_statements_say_sound_or_damaged() -> None:
    _, said = texts.draw_statements(Random(3), 200)
    sound, damaged = said[:, 0] > 0, said[:, 1] > 0
    assert (sound ^ damaged).all()
    assert sound.any()
    assert damaged.any()
    similar = said @ said.T
    assert similar[sound][:, sound].mean() > similar[sound][:, damaged].mean() + 0.5


def test_images_are_reproducible_and_of_no_evaluation_set() -> None:
    def digest(image: np.ndarray) -> str:
        return hashlib.sha256(image.tobytes()).hexdigest()

    ours = {digest(render(0, index).image) for index in range(8)}
    assert ours == {digest(render(0, index).image) for index in range(8)}
    assert len(ours) == 8
    assert ours.isdisjoint(digest(render(1, index).image) for index in range(8))
    for name, split in itertools.product(config_names(), ("train", "validation")):
        assert ours.isdisjoint(digest(render_scene(name, index, split).image) for index in range(4))


def test_images_show_every_defect_inside_their_masks() -> None:
    seen: set[int] = set()
    for index in range(120):
        example = render(2, index)
        assert example.image.shape == (192, 192, 3)
        assert example.kinds.shape == (192, 192)
        seen |= set(np.unique(example.kinds).tolist())
    assert set(KINDS) < set(DEFECTS)
    assert seen <= set(range(len(DEFECTS) + 1))
    assert len(seen) > 0.8 * len(DEFECTS)


def test_rendering_goes_on_where_it_was(tmp_path: Path) -> None:
    reports: list[int] = []
    first = load_examples(tmp_path, 0, 4, 2, lambda *args: reports.append(args[1]))
    again = load_examples(tmp_path, 0, 4, 1, lambda *args: reports.append(args[1]))
    assert reports == [4]
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.images, np.stack([render(0, index).image for index in range(4)]))


def test_windows_keep_images_and_masks_together(examples: Examples) -> None:
    # White where there is a defect and black elsewhere: no change of light can swap them.
    shown = np.where(examples.kinds[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, -1)
    settings = training.recipe()
    batch = draw_batch(
        Examples(shown, examples.kinds, examples.surfaces), settings, 16, 8, torch.Generator().manual_seed(0)
    )
    means = batch.images.unfold(2, 12, 12).unfold(3, 12, 12).mean(dim=(1, 4, 5)).flatten(1)
    checked = 0
    for mean, cover, kinds in zip(means, batch.cover, batch.kinds, strict=True):
        full, empty = cover == 1, cover == 0
        assert (kinds[empty] == -1).all()
        assert (kinds[~empty] >= 0).all()
        if full.any() and empty.any():
            assert mean[full].min() > mean[empty].mean()
            checked += 1
    assert checked >= 3
    assert batch.places.min() >= 0
    assert batch.places.max() < 256
    rows, columns = batch.places // 16, batch.places % 16
    assert (rows.amax(1) - rows.amin(1) == 7).all()
    assert (columns.amax(1) - columns.amin(1) == 7).all()


def test_window_of_the_whole_image_is_the_plain_tower() -> None:
    model = training.new_model(training.encoder_config(small_recipe()), seed=0)
    images = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    settings = {"taps": [1, 2], "dual_from": 2, "vv": True, "layer_aliasing": False, "cls": True}
    plain = vv_attention.encode(model.visual, images, **settings)
    window = training._at(model.visual, torch.arange(256).expand(2, -1))
    seen = vv_attention.encode(window, images, **settings)
    torch.testing.assert_close([seen[0], *seen[1]], [plain[0], *plain[1]])


def test_texts_are_encoded_as_by_open_clip() -> None:
    config = training.encoder_config(small_recipe())
    model = training.new_model(config, seed=0)
    tokenizer = training.Tokenizer(77, config["token_ids"])
    said, _ = texts.draw_statements(Random(0), 6)
    torch.testing.assert_close(
        texts.encode_texts(model, tokenizer, said), model.encode_text(tokenizer(said), normalize=True)
    )


class _StopError(Exception):
    pass


def _losses(folder: Path) -> list[dict[str, float]]:
    """The losses on captions and images that the training did not see: before, after the texts', after both."""
    settings, config = small_recipe(), json.loads((folder / "config.json").read_text())
    model, tokenizer = training.new_model(config, seed=0), training.Tokenizer(77, config["token_ids"])
    trained = {name: tensor.float() for name, tensor in load_file(folder / "weights.safetensors").items()}
    made = [render(9, index) for index in range(8)]
    unseen = Examples(
        np.stack([one.image for one in made]),
        np.stack([one.kinds for one in made]),
        np.array([surfaces().index(one.surface) for one in made], np.uint8),
    )
    batch = draw_batch(unseen, settings, 8, 16, torch.Generator().manual_seed(0))
    found = []
    for loaded in ("nothing", "text", ""):
        tensors = {name: t for name, t in trained.items() if not loaded or not name.startswith("visual.")}
        if loaded != "nothing":
            model.load_state_dict(tensors, strict=not loaded)
        with torch.no_grad():
            pool = texts.text_pool(model, tokenizer, Random(0))
            terms = training.image_losses(model, tokenizer, pool, batch, Random(0), settings)
            terms["text"] = texts.text_loss(model, tokenizer, Random("unseen"), 64)
        found.append({name: term.item() for name, term in terms.items()})
    return found


@pytest.mark.slow
def test_training_is_deterministic_goes_on_and_lowers_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_STORE_EVERY", 2)
    for name in ("_SOUND_CAPTIONS", "_DAMAGED_CAPTIONS", "_KIND_CAPTIONS"):
        monkeypatch.setattr(texts, name, 2)
    seen: list[tuple[str, int]] = []
    training.train(tmp_path / "whole", small_recipe(), on_progress=lambda *args: seen.append(args[:2]))
    assert seen == [
        ("images", 5),
        *(("text", n) for n in range(1, 26)),
        *(("image", n) for n in range(1, 31)),
    ]
    before, texts_trained, after = _losses(tmp_path / "whole")
    assert after["text"] < 0.8 * before["text"]
    assert after["patches"] < texts_trained["patches"]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "config.json",
        "weights.safetensors",
    ]

    # Interrupted in the text tower's training, then in the image tower's, each between two stored states.
    for place in (("text", 3), ("image", 3)):

        def stop(what: str, step: int, *_: object, place: tuple[str, int] = place) -> None:
            if (what, step) == place:
                raise _StopError

        with pytest.raises(_StopError):
            training.train(tmp_path / "parts", small_recipe(), on_progress=stop)
        assert not (tmp_path / "parts" / "weights.safetensors").exists()
    training.train(tmp_path / "parts", small_recipe())
    for name in ("config.json", "weights.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    other = tmp_path / "other"
    training.train(other, small_recipe(), seed=1)
    assert (other / "weights.safetensors").read_bytes() != (
        tmp_path / "whole" / "weights.safetensors"
    ).read_bytes()


def test_training_refuses_what_it_would_spoil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(what: str, step: int, *_: object) -> None:
        if (what, step) == ("text", 25):
            raise _StopError

    with pytest.raises(_StopError):
        training.train(tmp_path, small_recipe(), on_progress=stop)
    with pytest.raises(UserError, match="another seed, other settings or other code"):
        training.train(tmp_path, small_recipe(), seed=1)
    (tmp_path / "weights.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds weights already"):
        training.train(tmp_path, small_recipe())
    assert (tmp_path / "weights.safetensors").read_bytes() == b"mine"


def test_command_refuses_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"mine")
    assert run_app(["train-clip", "--out", str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_encoder_makes_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to its end, and the result to maps: as an encoder of its own, and as weights of `tiny`."""
    settings = training.recipe()
    settings["text"] |= {"steps": 2, "warmup": 1}
    monkeypatch.setattr(command, "recipe", lambda: settings)
    encoder = tmp_path / "encoder"
    assert run_app(["train-clip", "--out", str(encoder), "--steps", "2", "--images", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    weights = encoder / "weights.safetensors"
    assert facts["weights"] == str(weights)
    assert facts["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert sorted(path.name for path in encoder.iterdir()) == ["config.json", "weights.safetensors"]

    corpus = ["maps", "corpus_synthetic/n6_k3_s0", "--shots", "1", "--json"]
    found = {}
    for name, how in {
        "own": ["--encoder", str(encoder)],
        "file": ["--encoder", "tiny", "--encoder-weights", str(weights)],
        "package": ["--encoder", "tiny"],
    }.items():
        assert run_app([*corpus, "--out", str(tmp_path / name), *how]) == 0
        found[name] = [row.map for row in open_maps(tmp_path / name)]
    np.testing.assert_array_equal(found["own"], found["file"])
    assert not np.array_equal(found["own"], found["package"])


@pytest.mark.slow
def test_kead_with_tiny_separates_defects_from_sound_metal() -> None:
    from agssp.kead.kead import KeAD
    from agssp.tiny_clip.measure import Labelled, procedural, quality

    data = procedural("casting_billet_synthetic")
    part = Labelled(data.category, data.images[:60], data.masks[:60], data.boxes[:60], data.normals)
    kead = KeAD(load_encoder("tiny"))
    found = quality(part, kead.score(part.images, kead.fit(part.category, part.normals)))
    assert found["pixel_auroc"] > 0.85
    assert found["image_auroc"] > 0.7
