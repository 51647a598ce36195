"""Encoders: where they come from, what they refuse, and what they make of images and texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from kead_models import MEAN, STD, RandomClip, make_random_clip, random_images, randomise
from PIL import Image
from safetensors.torch import load_file, save_file

from agssp.kead import encoder_sources
from agssp.kead.encoder import Encoder, Tokenizer, load_encoder
from agssp.kead.kead import KeAD
from datasets_builders.errors import UserError

VISION = {"image_size": 48, "layers": 4, "width": 64, "head_width": 16, "patch_size": 16}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> RandomClip:
    return make_random_clip(tmp_path_factory.mktemp("encoder") / "clip", taps=[1, 4], dual_from=2, **VISION)


@pytest.fixture(scope="module")
def encoder(clip: RandomClip) -> Encoder:
    return load_encoder(str(clip.folder), precision="fp32")


def with_config(clip: RandomClip, folder: Path, **changes: Any) -> Path:
    shutil.copytree(clip.folder, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("size", [(48, 48), (480, 640), (7, 300), (1, 1), (106, 96)])
def test_preprocessing_is_pillows_to_one_grey_level(encoder: Encoder, size: tuple[int, int]) -> None:
    image = random_images(1, size=size)[0]
    got = encoder.preprocess([image, image[::-1]])
    assert got.shape == (2, 3, 48, 48)
    assert got.dtype == torch.float32
    for place, source in enumerate((image, np.ascontiguousarray(image[::-1]))):
        resized = np.asarray(Image.fromarray(source).resize((48, 48), Image.Resampling.BICUBIC))
        levels = (got[place].permute(1, 2, 0).numpy() * STD + MEAN) * 255
        assert np.abs(levels - resized).max() < 1.001
        assert np.abs(levels - resized).mean() < 0.1


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
    ids=["grey", "rgba", "float", "empty"],
)
def test_other_images_are_refused(encoder: Encoder, image: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"Image 1 is .* RGB"):
        encoder.preprocess([np.zeros((5, 5, 3), np.uint8), image])


def test_texts_are_open_clips(clip: RandomClip, encoder: Encoder) -> None:
    import open_clip

    config = json.loads((clip.folder / "config.json").read_text())["model"]
    model = open_clip.CLIP(**config).eval()
    model.load_state_dict(load_file(clip.folder / "weights.safetensors"))
    texts = [
        "a dent",
        "",
        "a photo of a hot-rolled steel strip with a long crack " * 4,
        "dent",
        "a dent",
    ] * 14
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts), normalize=True)
    torch.testing.assert_close(encoder.encode_texts(texts), expected, atol=1e-5, rtol=0)


def test_part_of_the_vocabulary() -> None:
    whole = Tokenizer(16)
    used = sorted({*whole(["a photo of rust", "a dent"]).flatten().tolist()})
    part = Tokenizer(16, used)
    ids = part(["a dent", "a photo of rust"])
    assert ids.shape == (2, 16)
    assert torch.equal(torch.tensor(used)[ids], whole(["a dent", "a photo of rust"]))
    assert torch.equal(ids.argmax(dim=1), whole(["a dent", "a photo of rust"]).argmax(dim=1))
    with pytest.raises(UserError, match="vocabulary lacks words of 'a scratch'"):
        part(["a dent", "a scratch"])


def test_a_local_file_works_as_the_real_weights_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both file forms, the training checkpoints that open_clip writes, and the tag's settings."""
    import open_clip

    settings = open_clip.get_model_config("ViT-B-32") | {"embed_dim": 24}
    settings["vision_cfg"] |= VISION
    settings["text_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: json.loads(json.dumps(settings)))
    model = open_clip.CLIP(**settings, quick_gelu=True)
    randomise(model, seed=3)
    state = model.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    half = {key: value.reshape(1) if key == "logit_scale" else value for key, value in state.items()}
    torch.save({"epoch": 32, "state_dict": {f"module.{k}": v for k, v in half.items()}}, tmp_path / "b.pt")

    loaded = [load_encoder("ViT-B-32/openai", weights=tmp_path / file) for file in ("a.safetensors", "b.pt")]
    assert loaded[0].identity == loaded[1].identity
    assert loaded[0].identity["precision"] == "fp32"
    assert (loaded[0].identity["taps"], loaded[0].identity["dual_from"]) == ([1, 2, 3, 4], 2)
    pixels = loaded[0].preprocess(random_images(2))
    with torch.no_grad():
        expected = model.eval().encode_image(pixels, normalize=True)
    for encoder in loaded:
        got = encoder.encode_images(pixels, vv=True, layer_aliasing=False)
        torch.testing.assert_close(got.cls, expected, atol=1e-5, rtol=0)
    other = load_encoder("ViT-B-32/laion2b_s34b_b79k", weights=tmp_path / "a.safetensors")
    assert other.identity["weights"] == loaded[0].identity["weights"]
    assert other.identity["config"] != loaded[0].identity["config"], "this tag's activation is the plain GELU"
    assert load_encoder("ViT-B-32", weights=str(tmp_path / "b.pt")).identity == other.identity
    maps = KeAD(loaded[1]).score(random_images(2), KeAD(loaded[1]).fit("wood", random_images(1)))
    assert np.isfinite(maps.maps).all()


def test_identity_changes_with_weights_and_precision(
    clip: RandomClip, encoder: Encoder, tmp_path: Path
) -> None:
    state = load_file(clip.folder / "weights.safetensors")
    state["visual.ln_post.bias"][0] += 1e-3
    save_file(state, tmp_path / "other.safetensors")
    other = load_encoder(str(clip.folder), weights=tmp_path / "other.safetensors", precision="fp32").identity
    assert other["weights"] != encoder.identity["weights"]
    assert {**other, "weights": None} == {**encoder.identity, "weights": None}
    lower = load_encoder(str(clip.folder), precision="bf16").identity
    assert lower == {**encoder.identity, "precision": "bf16"}
    later = load_encoder(str(with_config(clip, tmp_path / "clip", dual_from=3)), precision="fp32").identity
    assert later["dual_from"] == 3
    assert later["config"] != encoder.identity["config"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not hold"),
        (b"not a checkpoint", "does not hold"),
        ("missing", "visual.proj"),
        ("extra", "surplus"),
        ("shape", "size mismatch"),
        ("code", "does not hold"),
    ],
    ids=["empty", "garbage", "missing", "extra", "shape", "code"],
)
def test_weights_that_do_not_fit_are_refused(
    clip: RandomClip, tmp_path: Path, content: bytes | str, reason: str
) -> None:
    state = load_file(clip.folder / "weights.safetensors")
    path = tmp_path / ("weights.pt" if content in ("code", b"") else "weights.safetensors")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "code":
        torch.save({"state_dict": state, "callback": _Dangerous(tmp_path / "ran")}, path)
    else:
        if content == "missing":
            del state["visual.proj"]
        elif content == "extra":
            state["surplus"] = torch.zeros(1)
        else:
            state["visual.positional_embedding"] = torch.zeros(5, 64)
        save_file(state, path)
    with pytest.raises(UserError, match=reason) as error:
        load_encoder(str(clip.folder), weights=path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "ran").exists()


class _Dangerous:
    """Writes a file when it is unpickled as any pickle can."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": "hug"}, "Did you mean 'huge'"),
        ({"name": "ViT-B-33/openai"}, "Did you mean"),
        ({"name": "ViT-B-32/openia"}, "Did you mean 'openai'"),
        ({"name": "ViT-B-32/"}, "needs weights"),
        ({"name": "RN50/openai"}, "vision tower is not CLIP's"),
        ({"name": "ViT-B-16-SigLIP/webli"}, "cannot use ViT-B-16-SigLIP"),
        ({"name": "coca_ViT-B-32/laion2b_s13b_b90k"}, "cannot"),
        ({"name": "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k"}, "text encoder is not CLIP's"),
        ({"name": "ViT-B-32", "weights": "/nowhere/w.pt"}, "No file /nowhere/w.pt"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_a_way_on(arguments: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load_encoder(**arguments)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"precision": "int8"}, "Unknown precision"),
        ({"precision": "fp16"}, "for GPUs"),
    ],
)
def test_precisions(clip: RandomClip, settings: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load_encoder(str(clip.folder), **settings)


def test_small_models_stay_in_float32(clip: RandomClip) -> None:
    assert load_encoder(str(clip.folder)).identity["precision"] == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(clip: RandomClip) -> None:
    with pytest.raises(UserError, match="sees no GPU"):
        load_encoder(str(clip.folder), device="cuda")


@pytest.mark.parametrize(
    "changes",
    [
        {"taps": [2, 1]}, {"taps": [1, 5]}, {"taps": [0]}, {"taps": []}, {"dual_from": 0}, {"dual_from": 9},
        {"mean": [0.5]}, {"surplus": 1}, {"model": {"embed_dim": 8}}, {"model": {"embed_dim": 8, "vision_cfg": {}}},
    ],
)  # fmt: skip
def test_a_folders_configuration_is_checked(
    clip: RandomClip, tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        load_encoder(str(with_config(clip, tmp_path / "clip", **changes)))


@pytest.mark.parametrize("name", ["base", "large", "huge"])
def test_without_network_the_presets_say_what_to_get(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="--encoder-weights FILE") as error:
        load_encoder(name)
    address = {"base": "laion400m_e32-699c4b84.pt", "large": "timm/vit_large_patch14_clip_336.openai",
               "huge": "apple/DFN5B-CLIP-ViT-H-14-378"}  # fmt: skip
    assert address[name] in str(error.value)


def test_presets_are_the_papers() -> None:
    import open_clip

    expected = {
        "base": ("ViT-B-16-plus-240", "laion400m_e32", 240, 16, [3, 6, 9, 12], 4, False),
        "large": ("ViT-L-14-336", "openai", 336, 14, [6, 12, 18, 24], 6, True),
        "huge": ("ViT-H-14-378-quickgelu", "dfn5b", 378, 14, [8, 16, 24, 32], 8, True),
    }
    presets = encoder_sources._presets()
    assert list(presets) == [*expected, "tiny"]
    for name, (model, tag, size, patch, taps, dual_from, quick) in expected.items():
        preset, config = presets[name], open_clip.get_model_config(model)
        assert (preset["model"], preset["tag"]) == (model, tag)
        assert (preset["taps"], preset["dual_from"]) == (taps, dual_from)
        assert (config["vision_cfg"]["image_size"], config["vision_cfg"]["patch_size"]) == (size, patch)
        assert config["vision_cfg"]["layers"] == taps[-1]
        assert open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False) == quick
