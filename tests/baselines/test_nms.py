"""Non-maximum suppression against plain loops and against the stored results of mmcv's compiled operator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import _nms, _ops, openmmlab

openmmlab.activate()

STORED_CASES = (
    "empty",
    "one",
    "ties",
    "zero_area",
    "identical_300",
    "negative_coords",
    "huge_coords",
    "random_2000",
    "random_30000",
)


def looped_keep(boxes: np.ndarray, threshold: float, offset: int) -> list[bool]:
    """The definition, pair by pair, in the precision of the boxes."""
    number = boxes.dtype.type
    threshold, offset, zero = number(threshold), number(offset), number(0)
    keep = [True] * len(boxes)
    with np.errstate(all="ignore"):
        areas = [(x2 - x1 + offset) * (y2 - y1 + offset) for x1, y1, x2, y2 in boxes]
        for i, j in itertools.combinations(range(len(boxes)), 2):
            if keep[i] and keep[j]:
                a, b = boxes[i], boxes[j]
                width = max(zero, min(a[2], b[2]) - max(a[0], b[0]) + offset)
                height = max(zero, min(a[3], b[3]) - max(a[1], b[1]) + offset)
                overlap = width * height
                keep[j] = not overlap / (areas[i] + areas[j] - overlap) > threshold
    return keep


def swept_keep(boxes: np.ndarray, threshold: float, offset: int) -> np.ndarray:
    """The definition with one sweep over all later boxes for each kept one, for sets too large for `looped_keep`."""
    dtype = boxes.dtype.type
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1 + dtype(offset)) * (y2 - y1 + dtype(offset))
    keep = np.ones(len(boxes), dtype=bool)
    for i in range(len(boxes)):
        if keep[i]:
            width = np.minimum(x2[i], x2[i + 1 :]) - np.maximum(x1[i], x1[i + 1 :]) + dtype(offset)
            height = np.minimum(y2[i], y2[i + 1 :]) - np.maximum(y1[i], y1[i + 1 :]) + dtype(offset)
            overlap = width.clip(min=0) * height.clip(min=0)
            with np.errstate(all="ignore"):
                keep[i + 1 :] &= ~(overlap / (area[i] + area[i + 1 :] - overlap) > dtype(threshold))
    return keep


@contextmanager
def route(name: str) -> Iterator[None]:
    """Sends small sets through what only large ones reach: the grid's look-up, or its dense comparison."""
    values = {
        "as shipped": {},
        "looked up": {"_BLOCK": 2, "_DENSE_GAIN": 0, "_PAIRS_AT_ONCE": 5},
        "dense": {"_BLOCK": 2, "_DENSE_GAIN": 1 << 40},
    }[name]
    with mock.patch.multiple(_nms, **values) if values else mock.patch.dict({}):
        yield


ROUTES = pytest.mark.parametrize("routed", ["as shipped", "looked up", "dense"])

# Few different numbers: many equal boxes, equal scores, shared edges, boxes of no and of negative extent.
coarse = st.integers(-4, 8).map(lambda number: number / 2)
fine = st.floats(-1e4, 1e4, width=32)
thresholds = st.one_of(
    st.sampled_from([-0.5, 0.0, 0.05, 0.1, 0.25, 0.3, 0.5, 1 / 3, 0.7, 0.999, 1.0, 1.5]),
    st.floats(0, 1, width=32),
)


@st.composite
def box_sets(draw: st.DrawFn) -> np.ndarray:
    corner = draw(st.sampled_from([coarse, fine]))
    sizes = draw(st.sampled_from([coarse, st.floats(0, 1e3, width=32)]))
    boxes = draw(st.lists(st.tuples(corner, corner, sizes, sizes), max_size=24))
    table = np.array(boxes, dtype=draw(st.sampled_from([np.float32, np.float64]))).reshape(-1, 4)
    table[:, 2:] += table[:, :2]
    return np.repeat(table, draw(st.integers(1, 2)), axis=0)


@ROUTES
@settings(max_examples=150, deadline=None)
@given(boxes=box_sets(), threshold=thresholds, offset=st.sampled_from([0, 1]))
def test_keeps_what_the_definition_keeps(
    routed: str, boxes: np.ndarray, threshold: float, offset: int
) -> None:
    with route(routed):
        keep = _nms.greedy_keep(boxes, threshold, offset)
    assert keep.tolist() == looped_keep(boxes, threshold, offset)


@ROUTES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strange_numbers_are_decided_as_by_the_definition(routed: str, dtype: type) -> None:
    limit = np.finfo(dtype)
    coordinates = [0, -1, 5, np.nan, np.inf, -np.inf, limit.max / 4, limit.tiny, limit.smallest_subnormal]
    rng = np.random.default_rng(0)
    for _ in range(40):
        boxes = rng.choice(coordinates, (14, 4)).astype(dtype)
        for threshold in (-0.1, 0.0, 0.3, 0.7):
            with route(routed):
                keep = _nms.greedy_keep(boxes, threshold, 0)
            assert keep.tolist() == looped_keep(boxes, threshold, 0)


@ROUTES
def test_areas_next_to_nothing_are_decided_as_by_the_definition(routed: str) -> None:
    rng = np.random.default_rng(1)
    boxes = rng.integers(0, 6, (120, 4))
    boxes[:, 2:] += boxes[:, :2]
    boxes = (boxes * 1.3e-23).astype(np.float32)  # areas of no or a few subnormal steps
    with route(routed):
        for threshold in (0.2, 0.5, 0.7, 0.9):
            assert _nms.greedy_keep(boxes, threshold, 0).tolist() == looped_keep(boxes, threshold, 0)


def made_boxes(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    place = rng.uniform(0, 900, (count, 2))
    size = {
        "small": lambda: np.full((count, 2), 9.0),
        "all sizes": lambda: np.exp(rng.uniform(0, 7, (count, 2))),
        "one size": lambda: rng.normal(120, 8, (count, 2)),
    }[kind if kind in ("small", "all sizes") else "one size"]()
    if kind == "piles":
        place = rng.uniform(0, 900, (9, 2))[rng.integers(0, 9, count)] + rng.normal(0, 5, (count, 2))
    boxes = np.hstack([place - size / 2, place + size / 2])
    if kind == "far outlier":
        boxes[count // 2] = [3e7, -3e7, 3e7 + 64, -3e7 + 64]
    return boxes.astype(np.float32)


@pytest.mark.parametrize("kind", ["small", "all sizes", "one size", "piles", "far outlier"])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 0.65, 0.9])
@pytest.mark.parametrize("offset", [0, 1])
def test_large_sets_keep_what_a_plain_sweep_keeps(kind: str, threshold: float, offset: int) -> None:
    boxes = made_boxes(kind, 2500)
    expected = swept_keep(boxes, threshold, offset)
    assert np.array_equal(_nms.greedy_keep(boxes, threshold, offset), expected)
    with mock.patch.object(_nms, "_DENSE_GAIN", 0):
        assert np.array_equal(_nms.greedy_keep(boxes, threshold, offset), expected)


@pytest.mark.parametrize("threshold", [0.06, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("margin", [1e-4, 0.02])
def test_partners_at_the_farthest_place_are_found(threshold: float, margin: float) -> None:
    """Pairs just above the threshold, their centres as far apart as such pairs can be, in every constellation."""
    rng = np.random.default_rng(11)
    count = 1500
    size = np.exp(rng.uniform(-3, 8, (count, 2)))
    place = (np.arange(count)[:, None] % [37, 41]) * 2e5 + rng.uniform(0, 1e4, (count, 2))
    wanted = threshold * (1 + margin)
    first = np.hstack([place, place + size]).astype(np.float64)
    second = first.copy()
    rows, axis, end = np.arange(count), rng.integers(0, 2, count), rng.integers(0, 2, count)
    length = size[rows, axis]
    # Either a shift of an equal box by s, (w - s) / (w + s) = IoU, or a longer box that ends where the first does.
    shift = length * (1 - wanted) / (1 + wanted) * np.where(end, 1, -1)
    longer = rng.random(count) < 0.5
    for corner in (0, 2):
        second[rows, axis + corner] += np.where(longer, 0, shift)
    second[rows, axis + 2 * end] += np.where(longer, length * (1 / wanted - 1) * np.where(end, 1, -1), 0)
    swapped = rng.random(count) < 0.5
    boxes = np.vstack([np.where(swapped[:, None], second, first), np.where(swapped[:, None], first, second)])
    with mock.patch.multiple(_nms, _BLOCK=128, _DENSE_GAIN=0):
        keep = _nms.greedy_keep(boxes, threshold, 0)
    assert keep[:count].all()
    assert not keep[count:].any()


@pytest.fixture(scope="module")
def compiled(raw_data: Path) -> dict[str, np.ndarray]:
    with np.load(raw_data / "compiled_ops_reference.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.mark.real_data
@pytest.mark.parametrize("case", STORED_CASES)
def test_equals_the_compiled_operator(compiled: dict[str, np.ndarray], case: str) -> None:
    from mmcv.ops import nms

    boxes, scores = (torch.from_numpy(compiled[f"nms/{case}/{name}"]) for name in ("boxes", "scores"))
    for threshold, offset in itertools.product((0.3, 0.5, 0.7), (0, 1)):
        kept, keep = nms(boxes, scores, threshold, offset=offset)
        expected = torch.from_numpy(compiled[f"nms/{case}/keep_iou{threshold}_offset{offset}"])
        assert keep.dtype == torch.int64
        assert torch.equal(keep, expected)
        assert torch.equal(kept, torch.cat([boxes, scores[:, None]], 1)[expected])


@pytest.mark.real_data
@pytest.mark.parametrize("case", STORED_CASES[1:])
def test_batched_equals_the_compiled_operator(compiled: dict[str, np.ndarray], case: str) -> None:
    from mmcv.ops import batched_nms

    names = ("boxes", "scores", "labels")
    boxes, scores, labels = (torch.from_numpy(compiled[f"nms/{case}/{name}"]) for name in names)
    detections, keep = batched_nms(
        boxes, scores, labels, {"type": "nms", "iou_threshold": 0.7, "split_thr": 100_000}
    )
    assert np.array_equal(keep.numpy(), compiled[f"nms/{case}/batched_keep"])
    assert np.array_equal(detections.numpy(), compiled[f"nms/{case}/batched_dets"])


def test_mmcv_filters_by_score_and_number() -> None:
    from mmcv.ops import nms

    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12], [20, 0, 30, 9]], dtype=np.float32)
    scores = np.array([0.3, 0.9, 0.6, 0.7], dtype=np.float32)
    kept, keep = nms(boxes, scores, 0.5, score_threshold=0.65)
    assert keep.tolist() == [1, 3]
    assert kept.tolist() == [[0, 0, 4, 5, scores[1]], [20, 0, 30, 9, scores[3]]]
    assert nms(boxes, scores, 0.5, max_num=2)[1].tolist() == [1, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_decided_in_at_least_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(200, 4, generator=generator) * 50
    boxes[:, 2:] += boxes[:, :2]
    boxes, scores = boxes.to(dtype), torch.rand(200, generator=generator).to(dtype)
    order = scores.sort(0, descending=True).indices
    sorted_boxes = boxes.double() if dtype == torch.float64 else boxes.float()
    expected = order[torch.tensor(looped_keep(sorted_boxes[order].numpy(), 0.4, 0))]
    assert torch.equal(_ops.nms(boxes, scores, 0.4), expected)


def test_boxes_with_a_gradient_are_taken() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]], requires_grad=True)
    assert _ops.nms(boxes, torch.tensor([0.1, 0.2], requires_grad=True), 0.5).tolist() == [1]


def test_thresholds_are_compared_as_each_library_compares_them() -> None:
    # 3 / 10 in float32 is a little above 0.3 in float64: equal for mmcv, above for torchvision.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert _ops.nms(boxes, scores, 0.3).tolist() == [0, 1]
    assert _ops.torchvision_nms(boxes, scores, 0.3).tolist() == [0]
    # 7 / 10 in float32 is a little below 0.7 in float64.
    boxes[1, 2] = 7
    assert _ops.nms(boxes, scores, 0.7).tolist() == [0, 1]
    assert _ops.torchvision_nms(boxes, scores, 0.7).tolist() == [0, 1]
    assert _ops.torchvision_nms(boxes.double(), scores, 0.7).tolist() == [0, 1]


def test_torchvision_keeps_the_order_of_equal_scores() -> None:
    boxes = torch.arange(400.0)[:, None] * 10 + torch.tensor([0.0, 0, 5, 5])
    assert torch.equal(_ops.torchvision_nms(boxes, torch.full((400,), 0.5), 0.5), torch.arange(400))


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("kind", ["small", "all sizes", "piles"])
def test_cuda_keeps_what_the_cpu_keeps(kind: str, offset: int) -> None:
    boxes = torch.from_numpy(made_boxes(kind, 3000))
    scores = torch.randperm(3000, generator=torch.Generator().manual_seed(0)) / 3000
    on_gpu = _ops.nms(boxes.cuda(), scores.cuda(), 0.5, offset)
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), _ops.nms(boxes, scores, 0.5, offset))
