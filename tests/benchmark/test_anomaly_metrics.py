"""Anomaly metrics against scikit-learn, SciPy and a literal AUPRO written from its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from benchmark.anomaly_metrics import (
    FIXED_THRESHOLDS,
    Curve,
    Truth,
    adaptive_threshold,
    evaluate,
    resize_mask,
)
from datasets_builders.errors import UserError


def literal_aupro(scores: list[NDArray], masks: list[NDArray], limit: float = 0.3) -> float:
    """AUPRO threshold by threshold: overlap of each region, share of sound pixels, trapezoids up to the limit."""
    regions = []
    for index, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(index, labels == number + 1) for number in range(count)]
    sound = sum(int((~mask).sum()) for mask in masks)
    points = [(0.0, 0.0)]
    for threshold in sorted({float(value) for values in scores for value in values.ravel()}, reverse=True):
        false = sum(
            int(((values >= threshold) & ~mask).sum()) for values, mask in zip(scores, masks, strict=True)
        )
        overlap = [float((scores[index][region] >= threshold).mean()) for index, region in regions]
        points.append((false / sound, sum(overlap) / len(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1, x1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0), limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def _case(seed: int, images: int = 4, size: int = 12, levels: int | None = None) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    masks = ndimage.gaussian_filter(rng.normal(size=(images, size, size)), (0, 1.5, 1.5)) > 0.25
    masks[0, 0, 0], masks[1] = True, False
    scores = rng.normal(size=masks.shape) + masks
    if levels:
        scores = np.round(scores * levels) / levels
    return scores.astype(np.float32), masks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [None, 4, 1])
def test_ranks_equal_scikit_learn(seed: int, levels: int | None) -> None:
    scores, masks = _case(seed, levels=levels)
    curve = Curve.of(scores.ravel(), masks.ravel().astype(np.uint32))
    truth, values = masks.ravel(), scores.ravel()
    assert curve.auroc() == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
    assert curve.average_precision() == pytest.approx(average_precision_score(truth, values), abs=1e-12)
    precision, recall, _ = precision_recall_curve(truth, values)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert curve.f1_max() == pytest.approx(f1.max(), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    scores=arrays.arrays(np.float32, 30, elements=st.floats(-3, 3, width=32)),
    truth=arrays.arrays(np.bool_, 30).filter(lambda values: values.any() and not values.all()),
)
def test_ranks_equal_scikit_learn_on_any_scores(scores: NDArray, truth: NDArray) -> None:
    curve = Curve.of(scores, truth.astype(np.uint32))
    assert curve.auroc() == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert curve.average_precision() == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert curve.scores.tolist() == sorted(set(scores.tolist()), reverse=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_aupro_equals_its_definition(seed: int, levels: int | None, limit: float) -> None:
    scores, masks = _case(seed, levels=levels)
    numbered, total = [], 0
    for mask in masks:
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        numbered.append(np.where(labels > 0, labels + total, 0))
        total += count
    curve = Curve.of(scores.ravel(), np.stack(numbered).ravel())
    assert curve.aupro(limit) == pytest.approx(literal_aupro(list(scores), list(masks), limit), abs=1e-12)


def test_one_large_region_and_one_small_count_alike() -> None:
    # 100 pixels of one region are found, the single pixel of the other is not, before any sound pixel is.
    scores = np.concatenate([np.full(100, 3.0), [0.0], np.full(100, 1.0)]).astype(np.float32)
    regions = np.concatenate([np.full(100, 1), [2], np.zeros(100, int)])
    curve = Curve.of(scores, regions)
    # A straight line from (0, 1/2) to (1, 1/2), then up: at rates below 0.3 the overlap stays a half.
    assert curve.aupro() == pytest.approx(0.5)


def test_extremes() -> None:
    truth = np.array([1, 1, 0, 0, 0], np.uint32)
    best = Curve.of(np.array([5, 4, 3, 2, 1], np.float32), truth)
    assert (best.auroc(), best.average_precision(), best.f1_max(), best.aupro()) == (1, 1, 1, 1)
    worst = Curve.of(np.array([1, 2, 3, 4, 5], np.float32), truth)
    assert (worst.auroc(), worst.aupro()) == (0, 0)
    constant = Curve.of(np.zeros(5, np.float32), truth)
    assert constant.auroc() == 0.5
    assert constant.average_precision() == pytest.approx(0.4)
    assert constant.aupro() == pytest.approx(0.15)
    signs = Curve.of(np.array([-0.0, 0.0, -1, 0.0, 1], np.float32), truth)
    assert signs.scores.tolist() == [1, 0, -1]
    for one_sided in (np.zeros(5, np.uint32), np.ones(5, np.uint32)):
        with pytest.raises(ValueError, match="positives and negatives"):
            Curve.of(np.zeros(5, np.float32), one_sided)


def test_a_mask_is_resized_by_area_and_cut_at_a_half() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 15:45] = True
    for size in (20, 240):
        resized = resize_mask(mask, size)
        assert resized.shape == (size, size)
        assert resized.mean() == pytest.approx(mask.mean(), abs=0.02)
        rows, columns = np.flatnonzero(resized.any(1)), np.flatnonzero(resized.any(0))
        assert np.allclose([rows[0], rows[-1] + 1], [size / 4, size * 3 / 4], atol=1)
        assert np.allclose([columns[0], columns[-1] + 1], [size / 4, size * 3 / 4], atol=1)
    assert not resize_mask(np.zeros((7, 9), bool), 20).any()
    assert resize_mask(np.ones((7, 9), bool), 20).all()


def _split(seed: int) -> tuple[NDArray, NDArray, list[Truth]]:
    rng = np.random.default_rng(seed)
    maps = rng.random((6, 5, 5)).astype(np.float32)
    truths = []
    for index in range(6):
        mask = np.zeros((30, 40), bool)
        if index % 2:
            mask[5 * index % 20 : 5 * index % 20 + 8, 4:20] = True
            maps[index, :, :2] += 0.5
        truths.append(Truth(bool(index % 2), mask))
    return maps, maps.max(axis=(1, 2)) + rng.random(6).astype(np.float32), truths


def test_all_metrics_of_a_split_equal_those_computed_step_by_step() -> None:
    torch = pytest.importorskip("torch")
    maps, scores, truths = _split(0)
    metrics = evaluate(maps, scores, truths, 30)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size=(30, 30), mode="bilinear", align_corners=True
    )[:, 0].numpy()
    masks = np.stack([resize_mask(truth.mask, 30) for truth in truths])
    anomalous = [truth.anomalous for truth in truths]
    assert metrics.images == 6
    assert metrics.anomalous_images == 3
    assert metrics.pixel_images == 6
    assert metrics.image is not None
    assert metrics.pixel is not None
    assert metrics.mask_iou is not None
    assert metrics.image.auroc == pytest.approx(100 * roc_auc_score(anomalous, scores))
    assert metrics.pixel.auroc == pytest.approx(100 * roc_auc_score(masks.ravel(), large.ravel()), abs=1e-4)
    assert metrics.pixel.ap == pytest.approx(
        100 * average_precision_score(masks.ravel(), large.ravel()), abs=1e-3
    )
    assert metrics.pixel.aupro == pytest.approx(100 * literal_aupro(list(large), list(masks)), abs=1e-2)
    # The adaptive threshold and its IoU, at the images' own size.
    threshold = float(np.mean([values.max() for values in maps])) - 0.1
    assert metrics.mask_iou.adaptive.threshold == pytest.approx(threshold)
    own = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size=(30, 40), mode="bilinear", align_corners=True
    )[:, 0].numpy()

    def iou(limit: float) -> float:
        found = [
            ((own[i] > limit) & truths[i].mask).sum() / ((own[i] > limit) | truths[i].mask).sum()
            for i in (1, 3, 5)
        ]
        return 100 * float(np.mean(found))

    assert metrics.mask_iou.adaptive.iou == pytest.approx(iou(threshold), abs=0.1)
    assert [at.threshold for at in metrics.mask_iou.fixed] == list(FIXED_THRESHOLDS)
    for at in metrics.mask_iou.fixed:
        assert at.iou == pytest.approx(iou(at.threshold), abs=0.1)
    assert metrics.mask_iou.best_fixed.iou == max(at.iou for at in metrics.mask_iou.fixed)


def test_what_does_not_exist_is_none() -> None:
    maps, scores, truths = _split(1)
    # Every image has defects: no image-level number; pixels stand.
    defects = [truths[1]] * 6
    metrics = evaluate(maps, scores, defects, 30)
    assert metrics.image is None
    assert metrics.pixel is not None
    # No mask: no pixel-level number, and the sound images still count as labelled.
    bare = [Truth(truth.anomalous, None if truth.anomalous else truth.mask) for truth in truths]
    metrics = evaluate(maps, scores, bare, 30)
    assert metrics.image is not None
    assert metrics.pixel is None
    assert metrics.mask_iou is None
    assert metrics.pixel_images == 3
    with pytest.raises(UserError, match="Nothing can be measured"):
        evaluate(maps, scores, [Truth(True, None)] * 6, 30)
    with pytest.raises(UserError, match="Nothing can be measured"):
        evaluate(maps, scores, [truths[0]] * 6, 30)


def test_images_without_masks_do_not_change_pixel_numbers() -> None:
    maps, scores, truths = _split(2)
    whole = evaluate(maps[:5], scores[:5], truths[:5], 30)
    more = evaluate(maps, scores, [*truths[:5], Truth(True, None)], 30)
    assert more.pixel == whole.pixel
    assert more.pixel_images == whole.pixel_images
    # The adaptive threshold is of all images, as the pseudo boxes' is.
    assert more.mask_iou is not None
    assert more.mask_iou.adaptive.threshold == adaptive_threshold(maps)
