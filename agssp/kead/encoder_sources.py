"""Where CLIP models come from: the paper's presets, open_clip's names, local files, and folders such as `tiny`.

An encoder's folder holds `weights.safetensors` and `config.json`:

    {"model": {"embed_dim": ..., "vision_cfg": {...}, "text_cfg": {...}, "quick_gelu": false},   open_clip's form
     "mean": [r, g, b], "std": [r, g, b], "taps": [...], "dual_from": 2,
     "token_ids": [0, 5, ..., 49406, 49407]}    optional: the part of CLIP's vocabulary that it keeps, ascending
"""

from __future__ import annotations

import functools
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import nn

from agssp.kead import weight_files
from agssp.kead.tokenizer import Tokenizer
from baselines import openmmlab
from datasets_builders.errors import UserError, unknown_name

openmmlab.activate()  # open_clip imports torchvision, which does not import everywhere without it

if TYPE_CHECKING:
    import open_clip

_FILE = Path(__file__).with_name("encoders.yaml")
_LIST = "python -c 'import open_clip; print(*open_clip.list_pretrained(as_str=True))'"
_UNREADABLE = (
    pickle.UnpicklingError, SafetensorError, EOFError, OSError, RuntimeError,
    StopIteration, AttributeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A model and what belongs to it.

    Attributes:
        model: In float32, on the CPU.
        tokenizer: Of its text encoder.
        config: `model_name`, `model` (what it is built from), `mean`, `std`, `taps`, `dual_from` and, for a part of
            the vocabulary, `token_ids`; plain types.
    """

    model: open_clip.CLIP
    tokenizer: Tokenizer
    config: dict[str, Any]


def names() -> list[str]:
    """Returns the presets."""
    return list(_presets())


def load(name: str, weights: Path | None) -> Loaded:
    """Finds, checks and loads a model.

    Args:
        name: A preset, `MODEL/TAG` of open_clip (with `weights`: or `MODEL`), or an encoder's folder.
        weights: A local file instead of the model's own.

    Raises:
        UserError: There is no such model, KeAD cannot use it, or there are no weights that fit.
    """
    preset = _presets().get(name)
    if preset is not None and "folder" in preset:
        return _from_folder(Path(__file__).parent / preset["folder"], weights)
    if preset is None and Path(name).is_dir():
        return _from_folder(Path(name), weights)
    if preset is None and "/" not in name and weights is None:
        raise unknown_name("encoder", name, names(), see="docs/kead.md (or give open_clip's MODEL/TAG)")
    if preset is None:
        model_name, _, tag = name.partition("/")
        preset = {"model": model_name, "tag": tag}
    return _from_open_clip(preset, weights)


@functools.cache
def _presets() -> dict[str, dict[str, Any]]:
    presets: dict[str, dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return presets


class _FolderConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    taps: Annotated[list[int], Field(min_length=1)]
    dual_from: int
    token_ids: list[int] | None = None


def _from_folder(folder: Path, weights: Path | None) -> Loaded:
    try:
        given = _FolderConfig.model_validate_json((folder / "config.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{folder} holds no encoder: config.json: {error}") from None
    config = {"model_name": folder.name, **given.model_dump(mode="json")}
    model = _build(str(folder), given.model)
    _check_taps(str(folder), config, model)
    _fill(model, weights or folder / "weights.safetensors", str(folder))
    return Loaded(model, Tokenizer(model.context_length, given.token_ids), config)


def _from_open_clip(preset: dict[str, Any], weights: Path | None) -> Loaded:
    import open_clip

    model_name, tag = preset["model"], preset["tag"]
    settings = open_clip.get_model_config(model_name)
    if settings is None:
        raise unknown_name("model of open_clip", model_name, open_clip.list_models(), see=_LIST)
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag and tag not in tags:
        raise unknown_name(f"tag of {model_name}", tag, tags, see=_LIST)
    if not tag and weights is None:
        raise UserError(
            f"{model_name} needs weights: give {model_name}/TAG with one of the tags {', '.join(tags)}, or a local "
            "file with --encoder-weights FILE."
        )
    trained = open_clip.get_pretrained_cfg(model_name, tag)
    settings["quick_gelu"] = trained.get("quick_gelu", settings.get("quick_gelu", False))
    model = _build(model_name, settings)
    depth = len(model.visual.transformer.resblocks)
    config = {
        "model_name": model_name,
        "model": settings,
        "mean": list(trained.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        "std": list(trained.get("std", open_clip.OPENAI_DATASET_STD)),
        # Models without a preset: quarters, and the start of the V-V stream of the preset that is as deep.
        "taps": preset.get("taps", sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)})),
        "dual_from": preset.get("dual_from", depth // 4 + 1 if depth <= 12 else depth // 4),
    }
    _check_taps(model_name, config, model)
    if weights is None:
        weights = weight_files.download(f"{model_name}/{tag}", trained, hub=preset.get("hub", True))
    _fill(model, weights, model_name)
    return Loaded(model, Tokenizer(model.context_length, clip=open_clip.get_tokenizer(model_name)), config)


def _build(name: str, settings: dict[str, Any]) -> open_clip.CLIP:
    """Builds a model without memory for its weights; refuses one that is not a plain CLIP with a transformer."""
    import open_clip
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    def refuse(why: str) -> UserError:
        return UserError(
            f"KeAD cannot use {name}: {why}. Use a plain CLIP ViT, such as a preset ({', '.join(names())})."
        )

    if settings.get("custom_text") or "hf_model_name" in settings.get("text_cfg", {}):
        raise refuse("its text encoder is not CLIP's")
    if "timm_model_name" in settings.get("vision_cfg", {}):
        raise refuse("its vision tower is not CLIP's transformer")
    try:
        with torch.device("meta"):
            model = open_clip.CLIP(**settings)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{name}: open_clip cannot build this model: {error}") from None
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        raise refuse("its vision tower is not CLIP's transformer")
    if visual.attn_pool is not None or visual.pool_type != "tok":
        raise refuse("its image feature is not the class token")
    if not all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks):
        raise refuse("its blocks are not CLIP's")
    if (
        model.attn_mask is None
        or model.text_pool_type != "argmax"
        or isinstance(model.text_projection, nn.Module)
    ):
        raise refuse("its text encoder is not CLIP's")
    return model


def _check_taps(name: str, config: dict[str, Any], model: open_clip.CLIP) -> None:
    taps, depth = config["taps"], len(model.visual.transformer.resblocks)
    if taps != sorted(set(taps)) or taps[0] < 1 or taps[-1] > depth or not 1 <= config["dual_from"] <= depth:
        raise UserError(
            f"{name}: taps {taps} and dual_from {config['dual_from']} do not fit its {depth} blocks, which are "
            "counted from 1; taps ascend."
        )


def _fill(model: open_clip.CLIP, path: Path, name: str) -> None:
    """Gives a built model its weights, all of them and no others."""
    from open_clip.factory import load_state_dict

    if not path.is_file():
        raise UserError(f"No file {path} with the weights of {name}. Check --encoder-weights.")
    try:
        state = load_state_dict(str(path), weights_only=True)
        if "logit_scale" in state:  # a scalar in some files, a vector of one in others
            state["logit_scale"] = state["logit_scale"].reshape(model.logit_scale.shape)
        model.load_state_dict(state, assign=True)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(
            f"{path} does not hold the weights of {name}: {reason}\nIt must be a checkpoint of exactly this model in "
            "open_clip's form: safetensors, or a pickle of plain tensors. A TorchScript archive, as OpenAI's own files "
            "are, is not read: it runs code."
        ) from None
    model.float()
    length = model.context_length
    model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
