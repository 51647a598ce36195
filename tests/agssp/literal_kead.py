"""KeAD once more: in NumPy, float64, one image, one head and one patch at a time, straight from the formulas.

It reads a CLIP state dict by its keys and shares nothing with the package.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import erf

Array = Any


def vision_features(
    state: dict[str, Array],
    image: Array,
    *,
    heads: int,
    patch: int,
    quick_gelu: bool,
    taps: list[int],
    dual_from: int,
    vv: bool = True,
    layer_aliasing: bool = False,
) -> tuple[Array, list[Array]]:
    """Returns the image's feature (D,) and, per tap, those of its patches (P, D), of unit length."""
    w = {
        key: np.asarray(value, dtype=np.float64) for key, value in state.items() if key.startswith("visual.")
    }
    image = np.asarray(image, dtype=np.float64)
    side = image.shape[1] // patch
    tokens = [w["visual.class_embedding"]]
    kernels = w["visual.conv1.weight"].reshape(len(w["visual.conv1.weight"]), -1)
    for row in range(side):
        for column in range(side):
            square = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(kernels @ square.reshape(-1))
    x = np.stack(tokens) + w["visual.positional_embedding"]
    if "visual.ln_pre.weight" in w:
        x = layer_norm(x, w, "visual.ln_pre")

    depth = 1 + max(int(key.split(".")[3]) for key in w if key.startswith("visual.transformer.resblocks."))
    second = None
    kept: dict[int, Array] = {}
    for number in range(1, depth + 1):
        prefix = f"visual.transformer.resblocks.{number - 1}"
        hidden = layer_norm(x, w, f"{prefix}.ln_1")
        if vv and number >= dual_from:
            addition = attention(hidden, w, prefix, heads, values_only=True)
            second = x + addition if second is None else second + addition
        x = x + attention(hidden, w, prefix, heads, values_only=False)
        inner = (
            layer_norm(x, w, f"{prefix}.ln_2") @ w[f"{prefix}.mlp.c_fc.weight"].T
            + w[f"{prefix}.mlp.c_fc.bias"]
        )
        inner = gelu(inner, quick_gelu) @ w[f"{prefix}.mlp.c_proj.weight"].T + w[f"{prefix}.mlp.c_proj.bias"]
        x = x + inner * w.get(f"{prefix}.ls_2.gamma", 1.0)
        if number in taps:
            kept[number] = second if second is not None else x
    if layer_aliasing and vv:
        kept = {number: second if number >= dual_from else value for number, value in kept.items()}

    def project(value: Array) -> Array:
        out = layer_norm(value, w, "visual.ln_post") @ w["visual.proj"]
        return out / np.sqrt((out**2).sum(axis=-1, keepdims=True))

    return project(x[:1])[0], [project(kept[number])[1:] for number in taps]


def attention(hidden: Array, w: dict[str, Array], prefix: str, heads: int, *, values_only: bool) -> Array:
    size = hidden.shape[1] // heads
    projected = hidden @ w[f"{prefix}.attn.in_proj_weight"].T + w[f"{prefix}.attn.in_proj_bias"]
    q, k, v = np.split(projected, 3, axis=1)
    if values_only:
        q = k = v
    out = np.empty_like(hidden)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for token in range(len(hidden)):
            logits = k[:, part] @ q[token, part] / math.sqrt(size)
            weights = np.exp(logits - logits.max())
            out[token, part] = (weights / weights.sum()) @ v[:, part]
    out = out @ w[f"{prefix}.attn.out_proj.weight"].T + w[f"{prefix}.attn.out_proj.bias"]
    return out * w.get(f"{prefix}.ls_1.gamma", 1.0)


def layer_norm(x: Array, w: dict[str, Array], prefix: str) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * w[f"{prefix}.weight"] + w[f"{prefix}.bias"]


def gelu(x: Array, quick: bool) -> Array:
    if quick:
        return x / (1 + np.exp(-1.702 * x))
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def mean_text(features: Array) -> Array:
    total = np.zeros(features.shape[1])
    for feature in np.asarray(features, dtype=np.float64):
        total += feature / math.sqrt(feature @ feature)
    total /= len(features)
    return total / math.sqrt(total @ total)


def text_pair(normal: Array, anomalous: Array, empty: Array | None = None) -> tuple[Array, Array]:
    pair = [mean_text(normal), mean_text(anomalous)]
    if empty is not None:
        pair = [text - mean_text(empty) for text in pair]
        pair = [text / math.sqrt(text @ text) for text in pair]
    return pair[0], pair[1]


def probability(feature: Array, texts: tuple[Array, Array], temperature: float) -> float:
    normal, anomalous = (math.exp(cosine(feature, text) / temperature) for text in texts)
    return anomalous / (normal + anomalous)


def distance(feature: Array, memory: Array) -> float:
    return min(0.5 * (1 - cosine(feature, other)) for other in memory)


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def anomaly(
    cls: Array,
    patches: list[Array],
    texts: tuple[Array, Array],
    memories: list[Array] | None,
    *,
    temperature: float = 0.07,
    released: bool = False,
) -> tuple[Array, float]:
    """Returns the map of one image, (P,), and its score."""
    total = np.zeros(len(patches[0]))
    for place in range(len(total)):
        zero = [probability(layer[place], texts, temperature) for layer in patches]
        total[place] = sum(zero) / len(zero)
        if memories is not None:
            few = [distance(layer[place], memory) for layer, memory in zip(patches, memories, strict=True)]
            total[place] += sum(few) / len(few)
    score = probability(cls, texts, temperature)
    if memories is not None:
        score = (score + max(total)) / (2 if released else 1)
    return total, score
