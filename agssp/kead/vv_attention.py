"""CLIP's vision transformer with a second, V-V stream beside the original one (paper section 3.2; CLIP Surgery).

From block `dual_from` on, the second stream adds to its tokens what the block's own attention gives when values
stand in for queries and keys: softmax(V V^T / sqrt(d)) V, then the output projection; it has no feed-forward part.
The values are those of the original stream, which runs on untouched, so both share the first LayerNorm and V.

The blocks are open_clip's, read and not changed. Residual streams and norms are float32 at any precision; matrix
products and attention run in the precision of the weights, with sums in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agssp.kead.products import PLAIN, Products

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer


def encode(
    visual: VisionTransformer,
    images: Tensor,
    *,
    taps: Sequence[int],
    dual_from: int,
    vv: bool,
    layer_aliasing: bool,
    cls: bool,
    products: Products = PLAIN,
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Runs the tower once and projects what is asked for; nothing else is computed.

    Args:
        visual: open_clip's vision tower, in evaluation mode.
        images: (N, 3, S, S) float32, normalised.
        taps: Blocks whose patch tokens are wanted, counted from 1, ascending.
        dual_from: First block of the V-V stream; taps before it give the original stream's tokens.
        vv: Whether to run the V-V stream; without it every tap gives the original stream's tokens.
        layer_aliasing: Give the V-V tokens of the last block at every tap of that stream, as the released code does.
        cls: Whether the image's feature is wanted.
        products: How to compute them.

    Returns:
        The projected class token of the original stream, (N, D), or None; and per tap the projected patch tokens,
        (N, P, D). All float32, not normalised.
    """
    blocks = visual.transformer.resblocks
    vv_end = len(blocks) if layer_aliasing else taps[-1]
    end = len(blocks) if cls else vv_end if vv else taps[-1]
    dtype = visual.conv1.weight.dtype
    x = _embed(visual, images, dtype)
    x_vv: Tensor | None = None
    tapped: dict[int, Tensor] = {}
    for index, block in enumerate(blocks[:end], start=1):
        dual = vv and dual_from <= index <= vv_end
        # The original stream ends with what is still wanted of it: all tokens, the class token alone, or nothing.
        wanted = None if index < end or (index in taps and not dual) else int(cls)
        hidden = block.ln_1(x).to(dtype)
        attended, values = _attention(block.attn, hidden, wanted, products)
        if dual:
            change = block.ls_1(_vv_attention(block.attn, values, products)).float()
            x_vv = (x[:, 1:] if x_vv is None else x_vv) + change
        if attended is not None:
            x = x[:, :wanted] + block.ls_1(attended)
            x = x + block.ls_2(_feed_forward(block.mlp, block.ln_2(x).to(dtype), products))
        if index in taps:
            tapped[index] = x_vv if dual and x_vv is not None else x[:, 1:]
    if layer_aliasing and x_vv is not None:
        tapped = {index: x_vv if index >= dual_from else tokens for index, tokens in tapped.items()}
    patches = tuple(_project(visual, tapped[index], dtype) for index in taps)
    return (_project(visual, x[:, 0], dtype) if cls else None), patches


def _embed(visual: VisionTransformer, images: Tensor, dtype: torch.dtype) -> Tensor:
    patches = visual.conv1(images.to(dtype)).flatten(2).transpose(1, 2).float()
    first = visual.class_embedding.expand(len(images), 1, -1)
    return visual.ln_pre(torch.cat([first, patches], dim=1) + visual.positional_embedding)


def _attention(
    attn: nn.MultiheadAttention, hidden: Tensor, wanted: int | None, products: Products
) -> tuple[Tensor | None, Tensor]:
    """Computes self-attention for the first `wanted` tokens (None: all), and every token's values.

    Args:
        attn: The block's attention.
        hidden: (N, L, D), after the block's first norm.
        wanted: 0 leaves the attention out and computes the values only.
        products: How to compute them.

    Returns:
        The attention's output, (N, wanted, D), or None; and the values, (N, heads, L, D / heads).
    """
    weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, hidden.shape[-1]
    if wanted == 0:
        return None, _heads(products.linear(hidden, weight[2 * width :], bias[2 * width :]), attn.num_heads)
    if wanted is None:
        q, k, v = products.linear(hidden, weight, bias).chunk(3, dim=-1)
    else:
        q = products.linear(hidden[:, :wanted], weight[:width], bias[:width])
        k, v = products.linear(hidden, weight[width:], bias[width:]).chunk(2, dim=-1)
    q, k, v = (_heads(tokens, attn.num_heads) for tokens in (q, k, v))
    return _out(attn, products.attention(q, k, v), products), v


def _vv_attention(attn: nn.MultiheadAttention, values: Tensor, products: Products) -> Tensor:
    """Lets every patch attend to all tokens by their values; the class token is attended to, and asks nothing."""
    return _out(attn, products.attention(values[:, :, 1:], values, values), products)


def _out(attn: nn.MultiheadAttention, attended: Tensor, products: Products) -> Tensor:
    """Joins the heads, (N, heads, L, D / heads), and projects them: (N, L, D)."""
    return products.linear(attended.transpose(1, 2).flatten(2), attn.out_proj.weight, attn.out_proj.bias)


def _feed_forward(mlp: Any, x: Tensor, products: Products) -> Tensor:
    wide = products.linear(x, mlp.c_fc.weight, mlp.c_fc.bias, mlp.gelu)
    return products.linear(wide, mlp.c_proj.weight, mlp.c_proj.bias)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _project(visual: VisionTransformer, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return (visual.ln_post(tokens).to(dtype) @ visual.proj).float()
