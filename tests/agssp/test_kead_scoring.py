"""Scores against the literal version, one patch at a time."""

from __future__ import annotations

import literal_kead
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agssp.kead import scoring


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)


sizes = st.integers(1, 6)


@settings(deadline=None, max_examples=20)
@given(sizes, sizes, st.integers(2, 9), st.integers(1, 20), st.integers(0, 9), st.integers(1, 60))
def test_nearest_distance_is_the_literal_one_however_it_is_chunked(
    images: int, patches: int, width: int, memory: int, seed: int, at_once: int
) -> None:
    queries, known = unit(images, patches, width, seed=seed), unit(memory, width, seed=seed + 100)
    known[0] = queries[0, 0]  # a patch that is in memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "SIMILARITIES_AT_ONCE", at_once)
        chunked = scoring.nearest_distance(queries, known)
    whole = scoring.nearest_distance(queries, known)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)
    expected = [
        [literal_kead.distance(patch, known.double().numpy()) for patch in image]
        for image in queries.double().numpy()
    ]
    np.testing.assert_allclose(whole.numpy(), expected, atol=1e-5)
    assert whole[0, 0] < 1e-6
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_memory_of_the_distances_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SIMILARITIES_AT_ONCE", 100)
    largest = 0
    multiply = Tensor.__matmul__

    def watched(left: Tensor, right: Tensor) -> Tensor:
        nonlocal largest
        result = multiply(left, right)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(Tensor, "__matmul__", watched)
    scoring.nearest_distance(unit(3, 50, 4), unit(37, 4, seed=1))
    few = largest
    scoring.nearest_distance(unit(1, 5, 4), unit(1000, 4, seed=1))
    assert 0 < few <= 100
    assert 0 < largest <= 100


@pytest.mark.parametrize("temperature", [0.07, 0.01, 1.0])
def test_probability_is_the_literal_one(temperature: float) -> None:
    features, texts = unit(3, 5, 16), unit(2, 16, seed=1)
    got = scoring.anomaly_probability(features, texts, temperature)
    pair = tuple(texts.double().numpy())
    expected = [
        [literal_kead.probability(patch, pair, temperature) for patch in image]
        for image in features.double().numpy()
    ]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_closed_forms() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    between = torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0], [0.0, 1.0]])
    share = 1 / (1 + np.exp(1 / 0.07))
    np.testing.assert_allclose(
        scoring.anomaly_probability(between, texts, 0.07), [0.5, share, 1 - share], atol=1e-6
    )
    opposite = scoring.nearest_distance(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[-1.0, 0.0]]))
    torch.testing.assert_close(opposite, torch.tensor([[1.0, 0.5]]))


@pytest.mark.parametrize("redundancy_removal", [False, True])
def test_texts_are_the_literal_ones(redundancy_removal: bool) -> None:
    normal, anomalous, empty = unit(7, 12), unit(9, 12, seed=1), unit(3, 12, seed=2)
    texts = torch.stack([scoring.mean_feature(normal), scoring.mean_feature(anomalous)])
    if redundancy_removal:
        texts = scoring.without_redundancy(texts, scoring.mean_feature(empty))
    expected = literal_kead.text_pair(
        normal.numpy(), anomalous.numpy(), empty.numpy() if redundancy_removal else None
    )
    np.testing.assert_allclose(texts.numpy(), np.stack(expected), atol=1e-5)


def test_image_scores() -> None:
    probability, maps = torch.tensor([0.25, 0.5]), torch.tensor([[0.5, 1.5, 0.0], [0.25, 0.5, 0.25]])

    def score(few_shot: bool, kind: scoring.ImageScore) -> list[float]:
        return scoring.image_score(probability, maps, few_shot=few_shot, kind=kind).tolist()

    assert score(True, "paper") == [1.75, 1.0]
    assert score(True, "released") == [0.875, 0.5]
    assert score(False, "paper") == score(False, "released") == [0.25, 0.5]
