"""CLIP encoders for KeAD: images and texts to features, with any plain vision transformer of open_clip."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor, nn

from agssp.kead import encoder_sources, vv_attention
from agssp.kead.encoder_sources import Loaded, names
from agssp.kead.products import PLAIN, PrepackedProducts, Products
from agssp.kead.tokenizer import Tokenizer
from baselines.training.precision import is_bfloat16_fast
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.storage import canonical_json, content_key

if TYPE_CHECKING:
    import open_clip

__all__ = ["Encoder", "ImageFeatures", "Tokenizer", "load_encoder", "names"]

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WIDE = 768
"""Vision towers from this width on gain from bf16 and prepacked weights on a CPU; smaller ones lose by converting."""
_TEXTS_AT_ONCE = 64


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
        clip: open_clip's model; its vision tower has the precision of `identity`. Its weights are not to be changed.
        tokenizer: Of the text encoder.
        batch_size: Images at once that suit the device.
    """

    def __init__(self, name: str, loaded: Loaded, *, device: str, precision: str) -> None:
        """Takes a loaded model; use `load_encoder`.

        Args:
            name: For messages and tables.
            loaded: The model, in float32; it is moved and converted in place.
            device: Of torch.
            precision: `fp32`, `bf16` or `fp16`, of the vision tower's matrix products.
        """
        visual, config = loaded.model.visual, loaded.config
        self.name = name
        self.identity = {
            "model": config["model_name"],
            "config": content_key(config),
            "weights": _tensors_sha256(loaded.model.state_dict()),
            "taps": list(config["taps"]),
            "dual_from": config["dual_from"],
            "precision": precision,
        }
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.image_size = int(visual.image_size[0])
        self.tokenizer = loaded.tokenizer
        self.batch_size = 8 if device == "cpu" else 32
        self._taps = tuple(config["taps"])
        self._dual_from = int(config["dual_from"])
        self._device = torch.device(device)
        self.clip: open_clip.CLIP = loaded.model.requires_grad_(False).eval().to(self._device)
        _convert(visual, _PRECISIONS[precision])
        prepack = device == "cpu" and visual.conv1.out_channels >= _WIDE
        prepack = prepack and PrepackedProducts.available(_PRECISIONS[precision])
        self._products: Products = PrepackedProducts() if prepack else PLAIN
        self._mean = torch.tensor(config["mean"], device=self._device).view(3, 1, 1) * 255
        self._std = torch.tensor(config["std"], device=self._device).view(3, 1, 1) * 255

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
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
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
            self.clip.visual,
            batch,
            taps=self._taps,
            dual_from=self._dual_from,
            vv=vv,
            layer_aliasing=layer_aliasing,
            cls=cls,
            products=self._products,
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
        features = torch.empty((len(ids), self.clip.visual.output_dim), device=self._device)
        for part in order.split(_TEXTS_AT_ONCE):
            # What follows a text's end changes nothing under the causal mask, so texts of like length go together.
            encoded = self._encode_tokens(ids[part][:, : int(lengths[part].max())].to(self._device))
            features[part.to(self._device)] = F.normalize(encoded.float(), dim=-1)
        return features

    def _encode_tokens(self, ids: Tensor) -> Tensor:
        model, length = self.clip, ids.shape[1]
        x = model.token_embedding(ids) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        ends = x[torch.arange(len(ids), device=x.device), ids.argmax(dim=1)]
        return ends @ model.text_projection


def load_encoder(
    name: str, *, weights: str | Path | None = None, device: str = "cpu", precision: str = "auto"
) -> Encoder:
    """Loads an encoder.

    Args:
        name: A preset (`base`, `large`, `huge`, `tiny`), open_clip's `MODEL/TAG`, or a folder (see `encoder_sources`).
        weights: A local checkpoint of the preset or MODEL, instead of a download: safetensors, or a pickle of plain
            tensors, which is read without running code. The tag then gives mean, std and activation only, and
            may be left out.
        device: Of torch: `cpu`, `cuda`, `cuda:1`.
        precision: `fp32`, `bf16`, `fp16`, or `auto`: fp16 on CUDA; on a CPU bf16 where the processor is fast in it
            and the model is large enough to gain, else fp32.

    Raises:
        UserError: No such encoder, not a plain CLIP vision transformer, no weights at hand, or weights that do not
            fit.
    """
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"Device {device!r} is not at hand: torch sees no GPU. Use cpu.")
    loaded = encoder_sources.load(name, None if weights is None else Path(weights))
    chosen = _precision(precision, device, loaded.model.visual.conv1.out_channels)
    return Encoder(name, loaded, device=device, precision=chosen)


def _precision(asked: str, device: str, width: int) -> str:
    if asked == "auto":
        if device != "cpu":
            return "fp16"
        return "bf16" if is_bfloat16_fast(device) and width >= _WIDE else "fp32"
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


def _tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of named tensors' contents: the same for a safetensors file and a pickle of them."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(canonical_json([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
