"""Products with weights laid out beforehand against float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agssp.kead.products import PrepackedProducts

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=TOLERANCE, ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    if not PrepackedProducts.available(found):
        pytest.skip("this processor or PyTorch cannot")
    return found


def randn(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@torch.inference_mode()
@pytest.mark.parametrize("activation", [None, nn.GELU(), nn.GELU("tanh"), nn.SiLU()])
def test_linear(dtype: torch.dtype, activation: nn.Module | None) -> None:
    products = PrepackedProducts()
    weight = randn(24, 40, seed=0, dtype=dtype) / 6
    bias = randn(24, seed=1, dtype=dtype)
    # A part of a weight, as of the values alone, begins where the whole does and is another product.
    for part in (slice(None), slice(0, 8), slice(8, 24)):
        for count in (1, 5):
            x = randn(2, count, 40, seed=count, dtype=dtype)
            expected = x.double() @ weight[part].double().T + bias[part].double()
            expected = expected if activation is None else activation(expected)
            found = products.linear(x, weight[part], bias[part], activation)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@torch.inference_mode()
def test_attention(dtype: torch.dtype) -> None:
    q, k, v = (randn(2, 3, count, 20, seed=count, dtype=dtype) for count in (6, 7, 7))
    weights = (q.double() @ k.double().mT / 20**0.5).softmax(dim=-1)
    found = PrepackedProducts().attention(q, k, v)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), weights @ v.double(), atol=TOLERANCE[dtype], rtol=0)
