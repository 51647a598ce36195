"""The metrics against pycocotools as its users run it, and against a brute-force average precision."""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth, Metrics, evaluate, evaluate_reference
from datasets_builders.errors import UserError
from datasets_builders.schema import detection_features

Case = tuple[GroundTruth, Detections]

FULL = pytest.approx(100, abs=1e-9)  # pycocotools adds 2e-16 to every denominator


def coco_truth(truth: GroundTruth, detections: Detections) -> dict[str, float | None]:
    """Runs pycocotools with its default settings, from annotation dicts and result dicts; -1 becomes None."""
    annotations, results = [], []
    for i in range(len(truth.image_ids)):
        for row in range(truth.offsets[i], truth.offsets[i + 1]):
            x, y, w, h = (float(value) for value in truth.boxes[row])
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": int(truth.labels[row]) + 1}
                | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(truth.crowd[row])}
            )
        mine = detections.of_image(i)
        for (x1, y1, x2, y2), score, label in zip(*(array.tolist() for array in mine), strict=True):
            results.append(
                {"image_id": i, "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truth.image_ids))],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(truth.classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        if results:
            answers = coco.loadRes(results)
        else:  # pycocotools cannot load an empty list
            answers = COCO()
            answers.dataset = coco.dataset | {"annotations": []}
            answers.createIndex()
        evaluation = COCOeval(coco, answers, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {"map50_95": evaluation.stats[0], "map50": evaluation.stats[1], "recall": evaluation.stats[8]}
    for k, name in enumerate(truth.classes):
        values[f"{name} ap50"] = evaluation.eval["precision"][0, :, k, 0, 2].mean()
        values[f"{name} ap50_95"] = evaluation.eval["precision"][:, :, k, 0, 2].mean()
        values[f"{name} recall"] = evaluation.eval["recall"][:, k, 0, 2].mean()
    return {name: None if value == -1 else 100 * float(value) for name, value in values.items()}


def flat(metrics: Metrics) -> dict[str, float | None]:
    values: dict[str, float | None] = {
        name: getattr(metrics, name) for name in ("map50_95", "map50", "recall")
    }
    for entry in metrics.per_class:
        for name in ("ap50", "ap50_95", "recall"):
            values[f"{entry.name} {name}"] = getattr(entry, name)
    return values


def assert_is_coco(truth: GroundTruth, detections: Detections) -> Metrics:
    metrics = evaluate(truth, detections)
    assert evaluate_reference(truth, detections) == metrics  # to the last bit
    mine, theirs = flat(metrics), coco_truth(truth, detections)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        if value is None:
            assert mine[name] is None, name
        else:
            assert mine[name] == pytest.approx(value, abs=1e-9, rel=0), name
    return metrics


def corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)


def random_case(
    seed: int,
    images: int = 5,
    classes: int = 3,
    objects: int = 4,
    answers: int = 12,
    grid: bool = False,
    ties: bool = False,
    crowd: float = 0.0,
    empty: float = 0.3,
) -> Case:
    """Random labels and noisy answers; `grid` makes equal IoUs likely, `empty` is the share of bare ones."""
    rng = np.random.default_rng(seed)

    def some(most: int) -> int:
        return 0 if rng.random() < empty else int(rng.integers(1, most + 1))

    def random_boxes(n: int) -> NDArray[np.float32]:
        if grid:
            return np.concatenate(
                [rng.integers(0, 8, (n, 2)) * 4, rng.integers(0, 4, (n, 2)) * 4], axis=1
            ).astype("f4")
        return np.concatenate([rng.uniform(0, 60, (n, 2)), rng.uniform(0, 40, (n, 2))], axis=1).astype("f4")

    ids = [f"image {i}" for i in range(images)]
    names = [f"class {k}" for k in range(classes)]
    boxes, labels, flags, found, scores, guesses = [], [], [], [], [], []
    for _ in ids:
        n, m = some(objects), some(answers)
        boxes.append(random_boxes(n))
        labels.append(rng.integers(0, classes, n))
        flags.append(rng.random(n) < crowd)
        answer, guess = random_boxes(m), rng.integers(0, classes, m)
        if n:
            near = rng.random(m) < 0.7
            source = rng.integers(0, n, m)
            noise = rng.choice([0, 4], (m, 4)) if grid else rng.normal(0, 2, (m, 4))
            answer[near] = np.maximum(boxes[-1][source] + noise.astype("f4"), 0)[near]
            guess[near] = labels[-1][source][near]
        found.append(corners(answer))
        guesses.append(guess)
        scores.append(rng.integers(0, 4, m) / 4 if ties else rng.random(m))
    if all(flag.all() for flag in flags):
        boxes[0], labels[0], flags[0] = np.array([[1, 2, 8, 8]], "f4"), np.array([0]), np.array([False])
    truth = GroundTruth.from_images(names, ids, np.full((images, 2), 100), boxes, labels, flags)
    return truth, Detections.from_images(names, ids, found, scores, guesses)


HARD_CASES: dict[str, Callable[[], Case]] = {
    "plain": lambda: random_case(0, images=40),
    "many images without objects or answers": lambda: random_case(1, images=60, empty=0.8),
    "no answers at all": lambda: random_case(2, answers=1, empty=1.0),
    "crowd": lambda: random_case(3, images=30, crowd=0.4),
    "crowd and ties on a grid": lambda: random_case(4, images=30, crowd=0.4, ties=True, grid=True),
    "score ties": lambda: random_case(5, images=40, ties=True),
    "equal IoUs and zero-size boxes": lambda: random_case(6, images=40, grid=True, answers=40),
    "80 classes, most without ground truth": lambda: random_case(7, images=20, classes=80),
    "300 classes": lambda: random_case(8, images=30, classes=300, objects=30, answers=60),
    "more than 100 answers of a class": lambda: random_case(9, images=6, classes=1, answers=350, empty=0),
    "more than 100 tied answers of a class": lambda: random_case(
        10, images=6, classes=1, answers=350, empty=0, ties=True, grid=True
    ),
    "one image, one class": lambda: random_case(11, images=1, classes=1, empty=0),
}


@pytest.mark.parametrize("name", HARD_CASES)
def test_equal_to_pycocotools(name: str) -> None:
    assert_is_coco(*HARD_CASES[name]())


@given(
    st.integers(0, 2**32),
    st.integers(1, 8),
    st.sampled_from([1, 2, 7, 30]),
    st.sampled_from([1, 4, 15]),
    st.sampled_from([1, 10, 150]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.3, 0.8]),
)
@settings(max_examples=120, deadline=None)
def test_equal_to_pycocotools_on_random_cases(
    seed: int,
    images: int,
    classes: int,
    objects: int,
    answers: int,
    grid: bool,
    ties: bool,
    crowd: float,
    empty: float,
) -> None:
    assert_is_coco(*random_case(seed, images, classes, objects, answers, grid, ties, crowd, empty))


def simple(
    boxes: list[list[float]], found: list[list[float]], scores: list[float], **more: list[int]
) -> Case:
    """One image; boxes as x, y, w, h on both sides."""
    labels, guesses = more.get("labels", [0] * len(boxes)), more.get("guesses", [0] * len(found))
    names = [f"class {k}" for k in range(max(labels + guesses) + 1)]
    truth = GroundTruth.from_images(
        names, ["x"], [[100, 100]], [boxes], [labels], [more.get("crowd", [0] * len(boxes))]
    )
    answer = corners(np.array(found, "f4").reshape(-1, 4))
    return truth, Detections.from_images(names, ["x"], [answer], [scores], [guesses])


def test_perfect_answers_score_one_hundred() -> None:
    metrics = assert_is_coco(
        *simple([[0, 0, 10, 10], [20, 20, 5, 9]], [[20, 20, 5, 9], [0, 0, 10, 10]], [0.9, 0.8])
    )
    assert (metrics.map50, metrics.map50_95, metrics.recall) == (FULL, FULL, FULL)
    assert (metrics.images, metrics.objects, metrics.detections) == (1, 2, 2)


def test_iou_exactly_at_the_threshold_counts() -> None:
    # 10x10 and its 10x5 half: IoU is exactly 0.5, one of ten thresholds.
    metrics = assert_is_coco(*simple([[0, 0, 10, 10]], [[0, 0, 10, 5]], [0.9]))
    assert metrics.map50 == FULL
    assert metrics.map50_95 == pytest.approx(10.0, abs=1e-12)


def test_duplicates_are_false_positives() -> None:
    # Found, duplicate, found: precision at recall 1 is 2/3, at recall up to 0.5 it is 1.
    metrics = assert_is_coco(
        *simple(
            [[0, 0, 10, 10], [50, 0, 10, 10]],
            [[0, 0, 10, 10], [0, 0, 10, 10], [50, 0, 10, 10]],
            [0.9, 0.8, 0.7],
        )
    )
    assert metrics.map50 == pytest.approx(100 * (51 * 1 + 50 * 2 / 3) / 101, abs=1e-9)


def test_class_without_ground_truth_has_no_value_and_is_left_out_of_the_mean() -> None:
    metrics = assert_is_coco(
        *simple([[0, 0, 10, 10]], [[0, 0, 10, 10], [5, 5, 9, 9]], [0.9, 0.99], guesses=[0, 2])
    )
    assert [entry.ap50 for entry in metrics.per_class] == [FULL, None, None]
    assert metrics.map50 == FULL


def test_crowd_region_neither_counts_nor_hurts() -> None:
    boxes, found = [[0, 0, 10, 10], [50, 50, 40, 40]], [[0, 0, 10, 10], [55, 55, 5, 5], [60, 60, 5, 5]]
    scores = [0.5, 0.9, 0.8]
    assert assert_is_coco(*simple(boxes, found, scores, crowd=[0, 1])).map50 == FULL
    metrics = assert_is_coco(*simple(boxes, found, scores, crowd=[0, 0]))
    assert metrics.map50 < 20
    assert assert_is_coco(*simple(boxes, found, scores, crowd=[0, 1])).objects == 1


def test_zero_size_boxes() -> None:
    metrics = assert_is_coco(
        *simple([[5, 5, 0, 0], [0, 0, 10, 10]], [[5, 5, 0, 0], [0, 0, 10, 0]], [0.9, 0.8])
    )
    assert metrics.map50 == 0


def test_answers_beyond_one_hundred_do_not_count() -> None:
    found = [[50.0, 50.0, 5.0, 5.0]] * 100 + [[0, 0, 10, 10]]
    late = simple([[0, 0, 10, 10]], found, [0.9] * 100 + [0.1])
    assert assert_is_coco(*late).map50 == 0
    assert assert_is_coco(*simple([[0, 0, 10, 10]], found[1:], [0.9] * 99 + [0.1])).map50 > 0


def brute_force_ap(case: Case, threshold: float) -> float:
    """101-point average precision of one class without crowd, from its definition, with plain loops."""
    truth, detections = case

    def iou(a: list[float], b: list[float]) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        inside = max(width, 0.0) * max(height, 0.0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
        return inside / union if union > 0 else 0.0

    ranked, objects = [], []
    for i in range(len(truth.image_ids)):
        rows = truth.boxes[truth.offsets[i] : truth.offsets[i + 1]].astype(float).tolist()
        objects.append([[x, y, x + w, y + h] for x, y, w, h in rows])
        image = detections.of_image(i)
        ranked += [
            (-s, i, b) for s, b in zip(image.scores.tolist(), image.boxes.astype(float).tolist(), strict=True)
        ]
    ranked.sort(key=lambda entry: entry[:2])
    taken = set()
    points = []
    hits = 0
    for rank, (_, i, box) in enumerate(ranked, 1):
        free = [(iou(box, other), j) for j, other in enumerate(objects[i]) if (i, j) not in taken]
        best = max(free, default=(0.0, -1))
        if best[0] >= threshold:
            hits += 1
            taken.add((i, best[1]))
        points.append((hits / sum(map(len, objects)), hits / rank))
    # COCO's recall levels as it computes them: its 0.7 lies a rounding error above 7 hits of 10.
    levels = np.linspace(0.0, 1.0, 101).tolist()
    return 100 * math.fsum(max((p for r, p in points if r >= level), default=0.0) for level in levels) / 101


@given(st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_equal_to_brute_force(seed: int, images: int) -> None:
    case = random_case(seed, images, classes=1, objects=5, answers=15)
    metrics = evaluate(*case)
    assert metrics.map50 == pytest.approx(brute_force_ap(case, 0.5), abs=1e-6)
    thresholds = [0.5 + 0.05 * step for step in range(10)]
    mean = math.fsum(brute_force_ap(case, threshold) for threshold in thresholds) / 10
    assert metrics.map50_95 == pytest.approx(mean, abs=1e-6)


def test_order_of_images_does_not_matter_and_stored_detections_give_equal_bits(tmp_path: Path) -> None:
    truth, detections = random_case(20, images=12, empty=0)
    order = np.random.default_rng(0).permutation(12)
    images = [detections.of_image(i) for i in order]
    ids = [detections.image_ids[i] for i in order]
    shuffled = Detections.from_images(detections.classes, ids, *zip(*images, strict=True))
    shuffled.save(tmp_path / "d.parquet")
    assert evaluate(truth, Detections.load(tmp_path / "d.parquet")) == evaluate(truth, detections)


def test_evaluation_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(*random_case(21))
    evaluate_reference(*random_case(21))
    assert capfd.readouterr() == ("", "")


def test_threads_get_equal_numbers() -> None:
    case = random_case(22, images=50)
    expected = evaluate(*case)
    results: list[Metrics] = []
    threads = [threading.Thread(target=lambda: results.append(evaluate(*case))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_forked_child_gets_equal_numbers_and_does_not_hang() -> None:
    case = random_case(23, images=300, objects=5, answers=60, empty=0)
    expected = evaluate(*case)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if evaluate(*case) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_other_images_or_classes_are_refused() -> None:
    truth, _ = random_case(24, images=3, classes=2)
    none = [[]] * 3
    with pytest.raises(UserError, match=r"1 missing, 1 foreign \(such as 'image 2'\)"):
        evaluate(
            truth, Detections.from_images(truth.classes, ["image 0", "image 1", "other"], none, none, none)
        )
    with pytest.raises(UserError, match="classes"):
        evaluate(truth, Detections.from_images(truth.classes[::-1], truth.image_ids, none, none, none))


def test_split_without_objects_is_refused() -> None:
    with pytest.raises(UserError, match="no object"):
        GroundTruth.from_images(["a"], ["x"], [[10, 10]], [[]], [[]])
    with pytest.raises(UserError, match="no object"):
        GroundTruth.from_images(["a"], ["x"], [[10, 10]], [[[0, 0, 5, 5]]], [[0]], [[True]])


@pytest.mark.parametrize(
    ("boxes", "labels", "reason"),
    [
        ([[[0, 0, -1, 5]]], [[0]], "negative size"),
        ([[[0, 0, np.nan, 5]]], [[0]], "not finite"),
        ([[[0, 0, 1, 5]]], [[1]], "label"),
        ([[[0, 0, 1, 5]]], [[0, 0]], "number"),
    ],
)
def test_bad_ground_truth_is_refused(boxes: list, labels: list, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        GroundTruth.from_images(["a"], ["x"], [[10, 10]], boxes, labels)


def make_dataset(
    rows: list[tuple[str, list[list[float]], list[int]]], classes: list[str]
) -> datasets.Dataset:
    """A split whose image bytes are no image: reading them would fail."""
    return datasets.Dataset.from_list(
        [
            {
                "image": {"bytes": b"no image", "path": None},
                "image_id": name,
                "width": 100 + i,
                "height": 50,
                "objects": {
                    "id": list(range(len(boxes))),
                    "bbox": boxes,
                    "area": [w * h for *_, w, h in boxes],
                    "category": labels,
                },
                "mask": None,
            }
            for i, (name, boxes, labels) in enumerate(rows)
        ],
        features=detection_features(classes),
    )


def test_ground_truth_from_a_dataset() -> None:
    rows = [
        ("b", [[1, 2, 3, 4], [5.5, 6, 7, 8]], [1, 0]),
        ("c", [], []),
        ("a", [[0, 0, 9, 9.25]], [2]),
        ("d", [], []),
    ]
    dataset = make_dataset(rows, ["p", "q", "r"])
    truth = GroundTruth.from_dataset(dataset)
    assert truth.classes == ("p", "q", "r")
    assert truth.image_ids == ("a", "b", "c", "d")
    assert truth.sizes.tolist() == [[102, 50], [100, 50], [101, 50], [103, 50]]
    assert truth.offsets.tolist() == [0, 1, 3, 3, 3]
    assert truth.boxes.tolist() == [[0, 0, 9, 9.25], [1, 2, 3, 4], [5.5, 6, 7, 8]]
    assert truth.labels.tolist() == [2, 1, 0]
    assert not truth.crowd.any()
    part = GroundTruth.from_dataset(dataset.select([3, 0]))
    assert part.image_ids == ("b", "d")
    assert part.labels.tolist() == [1, 0]
