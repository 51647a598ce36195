"""The products of a vision tower: as PyTorch has them, or with weights laid out for the processor beforehand."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn


class Products:
    """Linear layers and attention as PyTorch computes them."""

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None
    ) -> Tensor:
        """Returns `activation(x weight^T + bias)`.

        Args:
            x: (N, L, K).
            weight: (D, K).
            bias: (D,), or None.
            activation: Of each value; None: none.
        """
        y = F.linear(x, weight, bias)
        return y if activation is None else activation(y)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns `softmax(q k^T / sqrt(d)) v` for q (N, heads, M, d), k and v (N, heads, L, d)."""
        return F.scaled_dot_product_attention(q, k, v)


PLAIN = Products()


class PrepackedProducts(Products):
    """On a CPU, through oneDNN, for weights that do not change: no gradients pass.

    A weight is laid out for the processor when it is first used, not in every call, and GELU is computed before the
    product's result leaves the cache. Both copies of the weights stay in memory.
    """

    def __init__(self) -> None:
        self._packed: dict[tuple[int, torch.Size], tuple[Tensor, Tensor]] = {}

    @staticmethod
    def available(dtype: torch.dtype) -> bool:
        """Whether this PyTorch and processor can."""
        return torch.backends.mkldnn.is_available() and (
            dtype == torch.float32
            or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None
    ) -> Tensor:
        """Returns what `Products.linear` does."""
        key = weight.data_ptr(), weight.shape
        if key not in self._packed:
            # The weight is kept beside its copy, so that nothing else comes to lie at its address.
            self._packed[key] = weight, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        gelu = isinstance(activation, nn.GELU) and activation.approximate == "none"
        fused: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed[key][1], bias, *fused)
        return y if gelu or activation is None else activation(y)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns what `Products.attention` does, in bf16 with similarities rounded to bf16."""
        if q.dtype == torch.float32:
            return super().attention(q, k, v)
        # PyTorch's fused attention does not use the processor's bf16 products; two products and a softmax do.
        return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
