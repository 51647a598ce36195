"""CLIP encoders for KeAD: any vision transformer of open_clip, the paper's presets, and our own `tiny`.

A folder with `config.json` and `weights.safetensors` is an encoder too; `tiny` is one. Its configuration:

    {"model": {"embed_dim": ..., "vision_cfg": {...}, "text_cfg": {...}, "quick_gelu": false},   open_clip's form
     "mean": [r, g, b], "std": [r, g, b], "taps": [...], "dual_from": 2,
     "token_ids": [0, 5, ..., 49406, 49407]}    optional: the entries of CLIP's vocabulary that it keeps, ascending
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from agssp.kead import vv_attention
from baselines import openmmlab
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.storage import canonical_json, content_key

openmmlab.activate()  # open_clip imports torchvision, which does not import everywhere without it

if TYPE_CHECKING:
    import open_clip

_FILE = Path(__file__).with_name("encoders.yaml")
_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BF16_PAYS_FROM_WIDTH = 768
"""Width of the vision tower; below it, converting costs more than the faster products save."""
_TEXTS_AT_ONCE = 64


class Tokenizer:
    """Turns texts into a CLIP text encoder's numbers, with CLIP's own rules and all or part of its vocabulary.

    Attributes:
        context_length: Numbers per text that the encoder takes, with start and end.
    """

    def __init__(self, context_length: int, kept: Sequence[int] | None = None, clip: Any = None) -> None:
        """Takes the vocabulary.

        Args:
            context_length: Numbers per text.
            kept: Ids of CLIP's vocabulary that the encoder knows, in the order of its own; the first one is the
                padding, and the last one ends a text. None: all.
            clip: One of open_clip's tokenizers; None: its usual one.
        """
        import open_clip

        self.context_length = context_length
        self._clip = clip if clip is not None else open_clip.tokenizer.SimpleTokenizer()
        self._kept = None if kept is None else torch.tensor(kept)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Returns (N, context_length) int64; longer texts are cut, so check them before (`prompts.check_lengths`).

        Raises:
            UserError: A text has a piece that is not in the encoder's part of the vocabulary.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        ids: Tensor = self._clip(texts, context_length=context_length or self.context_length)
        if self._kept is None:
            return ids
        places = torch.searchsorted(self._kept, ids).clamp_(max=len(self._kept) - 1)
        unknown = (self._kept[places] != ids).any(dim=1)
        if unknown.any():
            text = texts[int(unknown.nonzero()[0])]
            raise UserError(
                f"This encoder does not know every word of {text!r}. Use another encoder, or words."
            )
        return places


@dataclass(frozen=True)
class ImageFeatures:
    """Features of N images, L2-normalised float32.

    Attributes:
        cls: (N, D), of the whole image, from the original stream; None where it was not asked for.
        patches: Per tap, (N, P, D), in the order of the grid's rows.
    """

    cls: Tensor | None
    patches: tuple[Tensor, ...]


class Encoder:
    """A CLIP model as KeAD uses it.

    Attributes:
        name: As it was asked for.
        identity: Everything that changes a feature: model, weights, taps, precision. JSON-able.
        grid: Rows and columns of patches.
        image_size: Side of the input in pixels.
        tokenizer: Of the text encoder.
        batch_size: Images at once that suit the device.
    """

    def __init__(
        self,
        name: str,
        model: open_clip.CLIP,
        tokenizer: Tokenizer,
        config: Mapping[str, Any],
        *,
        device: str,
        precision: str,
    ) -> None:
        """Takes a loaded float32 model; use `load_encoder`.

        Args:
            name: For messages and tables.
            model: In open_clip's float32; it is moved and converted in place.
            tokenizer: Of its text encoder.
            config: `model` (what it was built from), `mean`, `std`, `taps`, `dual_from`, in plain types.
            device: Of torch.
            precision: `fp32`, `bf16` or `fp16`, of the vision tower's matrix products.
        """
        visual = model.visual
        self.name = name
        self.identity = {
            "model": config["model_name"],
            "config": content_key(config),
            "weights": tensors_sha256(model.state_dict()),
            "taps": list(config["taps"]),
            "dual_from": config["dual_from"],
            "precision": precision,
        }
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.image_size = int(visual.image_size[0])
        self.tokenizer = tokenizer
        self.batch_size = 8 if device == "cpu" else 32
        self._taps = tuple(config["taps"])
        self._dual_from = int(config["dual_from"])
        self._device = torch.device(device)
        self._model = model.requires_grad_(False).eval().to(self._device)
        _convert(visual, _PRECISIONS[precision])
        self._mean = torch.tensor(config["mean"], device=self._device).view(3, 1, 1) * 255
        self._std = torch.tensor(config["std"], device=self._device).view(3, 1, 1) * 255

    @property
    def clip(self) -> open_clip.CLIP:
        """The model itself; whoever changes it needs an encoder of their own."""
        return self._model

    def preprocess(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Resizes images to the encoder's square (bicubic with antialiasing) and normalises them.

        The resize is torch's for uint8, which differs from Pillow's, open_clip's own, by one grey level at most and
        is many times as fast.

        Args:
            images: (H, W, 3) RGB uint8 each.

        Returns:
            (N, 3, S, S) float32 on the encoder's device.

        Raises:
            UserError: An image is not of this form.
        """
        size = (self.image_size, self.image_size)
        resized = torch.empty((len(images), 3, *size), dtype=torch.uint8)
        for place, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                raise UserError(
                    f"Image {place} is {image.dtype} of shape {image.shape}. KeAD takes RGB images, (height, width, 3) "
                    "uint8: convert it first, for instance with PIL's image.convert('RGB')."
                )
            pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
            resized[place] = F.interpolate(
                pixels, size=size, mode="bicubic", antialias=True, align_corners=False
            )[0]
        return (resized.to(self._device).float() - self._mean) / self._std

    @torch.inference_mode()
    def encode_images(
        self, batch: Tensor, *, vv: bool, layer_aliasing: bool, cls: bool = True
    ) -> ImageFeatures:
        """Encodes preprocessed images.

        Args:
            batch: From `preprocess`.
            vv: Patch tokens from the V-V stream, where it runs; else from the original stream.
            layer_aliasing: As in the released code, every tap of the V-V stream gives its last tokens.
            cls: Whether the feature of the whole image is wanted too.
        """
        feature, patches = vv_attention.encode(
            self._model.visual,
            batch,
            taps=self._taps,
            dual_from=self._dual_from,
            vv=vv,
            layer_aliasing=layer_aliasing,
            cls=cls,
        )
        return ImageFeatures(
            None if feature is None else F.normalize(feature, dim=-1),
            tuple(F.normalize(tokens, dim=-1) for tokens in patches),
        )

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encodes texts, in float32 at any precision: they are few.

        Args:
            texts: Of at most the context's length; see `prompts.check_lengths`.

        Returns:
            (N, D) normalised float32 on the encoder's device.
        """
        ids = self.tokenizer(texts)
        lengths = ids.argmax(dim=1) + 1
        order = lengths.argsort(stable=True)
        features = torch.empty((len(ids), self._model.visual.output_dim), device=self._device)
        for part in order.split(_TEXTS_AT_ONCE):
            # What follows a text's end changes nothing under the causal mask, so texts of like length go together.
            encoded = self._encode_tokens(ids[part][:, : int(lengths[part].max())].to(self._device))
            features[part.to(self._device)] = F.normalize(encoded.float(), dim=-1)
        return features

    def _encode_tokens(self, ids: Tensor) -> Tensor:
        model, length = self._model, ids.shape[1]
        x = model.token_embedding(ids) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        ends = x[torch.arange(len(ids), device=x.device), ids.argmax(dim=1)]
        return ends @ model.text_projection


def names() -> list[str]:
    """Returns the presets."""
    return list(_presets())


def load_encoder(
    name: str, *, weights: str | Path | None = None, device: str = "cpu", precision: str = "auto"
) -> Encoder:
    """Loads an encoder.

    Args:
        name: A preset (`base`, `large`, `huge`, `tiny`), open_clip's `MODEL/TAG`, or a folder as described above.
        weights: A local checkpoint of the preset or MODEL, instead of a download: safetensors, or a pickle of plain
            tensors, which is read without running code. The tag then gives mean, std and activation only, and
            may be left out.
        device: Of torch: `cpu`, `cuda`, `cuda:1`.
        precision: `fp32`, `bf16`, `fp16`, or `auto`: fp16 on CUDA; on a CPU bf16 where the processor multiplies in it
            and the model is large enough to gain, else fp32.

    Raises:
        UserError: No such encoder, not a plain CLIP vision transformer, no weights at hand, or weights that do not
            fit.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"Device {device!r} is not at hand: torch sees no GPU. Use cpu.")
    known = _presets()
    folder = Path(__file__).parent / known[name]["folder"] if "folder" in known.get(name, {}) else Path(name)
    if name not in known and "/" not in name and weights is None and not folder.is_dir():
        raise unknown_name("encoder", name, known, see="docs/kead.md (or give open_clip's MODEL/TAG)")
    if folder.is_dir():
        model, tokenizer, config = _from_folder(folder, None if weights is None else Path(weights))
    else:
        model_name, _, tag = name.partition("/")
        preset = known.get(name, {"model": model_name, "tag": tag})
        model, tokenizer, config = _from_open_clip(preset, None if weights is None else Path(weights))
    chosen = _precision(precision, device, model.visual.conv1.out_channels)
    return Encoder(name, model, tokenizer, config, device=device, precision=chosen)


class _FolderConfig(BaseModel):
    """The configuration of an encoder in a folder."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    taps: Annotated[list[int], Field(min_length=1)]
    dual_from: int
    token_ids: list[int] | None = None


@functools.cache
def _presets() -> dict[str, dict[str, Any]]:
    presets: dict[str, dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return presets


def _from_folder(folder: Path, weights: Path | None) -> tuple[Any, Tokenizer, dict[str, Any]]:
    try:
        given = _FolderConfig.model_validate_json((folder / "config.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{folder} holds no encoder: config.json: {error}") from None
    model = _build(str(folder), given.model)
    _load_weights(model, weights or folder / "weights.safetensors", str(folder))
    config = {"model_name": folder.name, **given.model_dump(mode="json")}
    _check_taps(str(folder), config, model)
    return model, Tokenizer(model.context_length, given.token_ids), config


def _from_open_clip(preset: dict[str, Any], weights: Path | None) -> tuple[Any, Tokenizer, dict[str, Any]]:
    import open_clip

    model_name, tag = preset["model"], preset["tag"]
    see = "python -c 'import open_clip; print(*open_clip.list_pretrained(as_str=True))'"
    settings = open_clip.get_model_config(model_name)
    if settings is None:
        raise unknown_name("model of open_clip", model_name, open_clip.list_models(), see=see)
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag and tag not in tags:
        raise unknown_name(f"tag of {model_name}", tag, tags, see=see)
    if not tag and weights is None:
        raise UserError(
            f"{model_name} needs weights: give {model_name}/TAG with one of the tags {', '.join(tags)}, or a local "
            "file with --encoder-weights FILE."
        )
    trained = open_clip.get_pretrained_cfg(model_name, tag)
    settings["quick_gelu"] = trained.get("quick_gelu", settings.get("quick_gelu", False))
    model = _build(model_name, settings)
    _load_weights(model, weights or _download(model_name, tag, trained), model_name)
    depth = len(model.visual.transformer.resblocks)
    config = {
        "model_name": model_name,
        "model": settings,
        "mean": list(trained.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": list(trained.get("std") or open_clip.OPENAI_DATASET_STD),
        # Models without a preset: the presets' quarters, and their start of the V-V stream at this depth.
        "taps": preset.get("taps", sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)})),
        "dual_from": preset.get("dual_from", depth // 4 + (1 if depth <= 12 else 0)),
    }
    _check_taps(model_name, config, model)
    return model, Tokenizer(model.context_length, clip=open_clip.get_tokenizer(model_name)), config


def _build(name: str, settings: dict[str, Any]) -> open_clip.CLIP:
    """Builds a CLIP model, and refuses those whose vision tower is not the plain transformer that KeAD knows."""
    import open_clip
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    why = None
    vision, text = settings.get("vision_cfg", {}), settings.get("text_cfg", {})
    if settings.get("custom_text") or "hf_model_name" in text:
        why = "its text encoder is not CLIP's"
    elif "timm_model_name" in vision or not isinstance(vision.get("layers", 12), int):
        why = "its vision tower is not CLIP's transformer"
    if why is None:
        try:
            model = open_clip.CLIP(**settings)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise UserError(f"{name}: open_clip cannot build this model: {error}") from None
        visual = model.visual
        assert isinstance(visual, VisionTransformer)
        if visual.attn_pool is not None or visual.pool_type != "tok":
            why = "its image feature is not the class token"
        elif not all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks):
            why = "its blocks are not CLIP's"
        elif (
            model.attn_mask is None
            or model.text_pool_type != "argmax"
            or isinstance(model.text_projection, nn.Module)
        ):
            why = "its text encoder is not CLIP's"
    if why is not None:
        raise UserError(
            f"KeAD cannot use {name}: {why}. Use a plain CLIP ViT, such as a preset ({', '.join(names())})."
        )
    return model


def _check_taps(name: str, config: Mapping[str, Any], model: open_clip.CLIP) -> None:
    taps, depth = config["taps"], len(model.visual.transformer.resblocks)
    if taps != sorted(set(taps)) or taps[0] < 1 or taps[-1] > depth or not 1 <= config["dual_from"] <= depth:
        raise UserError(
            f"{name}: taps {taps} and dual_from {config['dual_from']} do not fit its {depth} blocks, which are "
            "counted from 1; taps ascend."
        )


def _download(model_name: str, tag: str, trained: dict[str, Any]) -> Path:
    from open_clip.pretrained import download_pretrained

    try:
        return Path(download_pretrained(trained))
    except (OSError, RuntimeError, ValueError) as error:
        place = trained.get("hf_hub") or trained.get("url")
        raise UserError(
            f"The weights {model_name}/{tag} are not on this machine and cannot be downloaded ({error}). They are at "
            f"{place}: bring the file here by other means and give it with --encoder-weights FILE, or use the encoder "
            "tiny, which needs none."
        ) from None


def _load_weights(model: open_clip.CLIP, path: Path, name: str) -> None:
    from open_clip.factory import load_state_dict

    if not path.is_file():
        raise UserError(f"No file {path} with the weights of {name}. Check --encoder-weights.")
    try:
        state = load_state_dict(str(path), weights_only=True)
        if "logit_scale" in state:  # a scalar in some files, a vector of one in others
            state["logit_scale"] = state["logit_scale"].reshape(model.logit_scale.shape)
        model.load_state_dict(state)
    except (
        pickle.UnpicklingError,
        SafetensorError,
        EOFError,
        StopIteration,
        ValueError,
        AttributeError,
        TypeError,
        RuntimeError,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(
            f"{path} does not hold weights of {name}: {reason}. It must be a checkpoint of exactly this model in "
            "open_clip's form: safetensors, or a pickle of plain tensors (a TorchScript archive, as OpenAI's own "
            "files are, runs code and is not read)."
        ) from None


def _precision(asked: str, device: str, width: int) -> str:
    if asked == "auto":
        if device != "cpu":
            return "fp16"
        features = torch.cpu.get_capabilities()
        fast = features.get("avx512_bf16", False) or features.get("amx_bf16", False)
        return "bf16" if fast and width >= _BF16_PAYS_FROM_WIDTH else "fp32"
    if asked not in _PRECISIONS:
        raise unknown_name("precision", asked, ["auto", *_PRECISIONS], see="docs/kead.md")
    if asked == "fp16" and device == "cpu":
        raise UserError("Precision fp16 is for GPUs; on a CPU it is slow. Use auto, bf16 or fp32.")
    return asked


def _convert(visual: nn.Module, dtype: torch.dtype) -> None:
    """Gives the matrix products of the vision tower their precision; norms and embeddings stay float32."""
    for module in visual.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    visual.proj.data = visual.proj.data.to(dtype)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of named tensors' contents: the same for a safetensors file and a pickle of them."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(canonical_json([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
