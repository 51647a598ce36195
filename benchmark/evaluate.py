"""COCO metrics of a detector's answers on one validation split.

The definition is pycocotools' (area "all", at most 100 detections per image and class, 101 recall points); a
faster evaluator computes it, and the tests hold the two equal. All values are percentages, 0 to 100, as the
paper prints them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmark.detections import MAX_CLASSES, MAX_NAME_LENGTH, Detections
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    import datasets

MAX_DETECTIONS_PER_IMAGE = 100
"""Of each class, the highest scores: COCO's rule. Detectors may answer more; the rest does not count."""

_ALL_AREAS = [0.0, 1e10]
_log = logging.getLogger(__name__)
_fast_evaluator_process: int | None = None  # the process that owns the fast evaluator's threads

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]


class ClassMetrics(BaseModel):
    """Metrics of one class. A class without ground truth has None, and is left out of every mean."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
    objects: Count
    """Ground-truth boxes that count (crowd regions do not)."""
    ap50: Percent | None
    """Average precision at IoU 0.5."""
    ap50_95: Percent | None
    """Average precision, mean over IoU 0.5, 0.55, ..., 0.95."""
    recall: Percent | None
    """Highest recall with 100 detections an image, mean over the ten IoU thresholds (COCO's AR@100)."""


class Metrics(BaseModel):
    """Metrics of one split: means over the classes that have ground truth."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    map50: Percent
    """mAP@.5."""
    map50_95: Percent
    """mAP@.5:.95."""
    recall: Percent
    """AR@100: COCO's mean highest recall."""
    images: Count
    """Images of the split, those without objects included."""
    objects: Count
    """Ground-truth boxes that count (crowd regions do not)."""
    detections: Count
    """Detections, those beyond the limit of 100 included."""
    per_class: Annotated[tuple[ClassMetrics, ...], Field(strict=False, min_length=1, max_length=MAX_CLASSES)]
    """In the dataset's order of classes."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The labels of a validation split, without its pixels.

    Attributes:
        classes: Class names; a label is a position in it.
        image_ids: Every image of the split, sorted.
        sizes: (images, 2) int32, width and height in pixels.
        offsets: (images + 1,) int64; image i owns rows `offsets[i]:offsets[i + 1]`.
        boxes: (n, 4) float32, x, y, width, height in pixels.
        labels: (n,) int16.
        crowd: (n,) bool; such a region neither counts nor makes the detections inside it wrong.

    Raises:
        UserError: No box that counts in the whole split: then no metric is defined.
    """

    classes: tuple[str, ...]
    image_ids: tuple[str, ...]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int16]
    crowd: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if len(set(self.image_ids)) != len(self.image_ids) or list(self.image_ids) != sorted(self.image_ids):
            raise UserError("Ground truth: image ids must be distinct and sorted.")
        if np.any((self.labels < 0) | (self.labels >= len(self.classes))):
            raise UserError(f"Ground truth: a label outside 0..{len(self.classes) - 1}.")
        if not np.isfinite(self.boxes).all() or np.any(self.boxes[:, 2:] < 0) or np.any(self.boxes > 1e5):
            raise UserError("Ground truth: a box that is not finite, has negative size or is absurdly large.")
        if self.crowd.all():
            raise UserError("Ground truth: no object in the whole split, so mAP is not defined on it.")
        for array in (self.sizes, self.offsets, self.boxes, self.labels, self.crowd):
            array.setflags(write=False)

    @classmethod
    def from_images(
        cls,
        classes: Sequence[str],
        image_ids: Sequence[str],
        sizes: ArrayLike,
        boxes: Sequence[ArrayLike],
        labels: Sequence[ArrayLike],
        crowd: Sequence[ArrayLike] | None = None,
    ) -> GroundTruth:
        """Collects one image after the other, in any order of images.

        Args:
            classes: Class names.
            image_ids: One name an image, each once.
            sizes: (images, 2), width and height.
            boxes: Per image (n, 4), x, y, width, height in pixels.
            labels: Per image (n,), 0-based.
            crowd: Per image (n,) bool; None where there are no crowd regions.

        Returns:
            The ground truth, images sorted by name.
        """
        order = sorted(range(len(image_ids)), key=lambda position: image_ids[position])
        box_parts = [np.asarray(boxes[i], dtype=np.float32).reshape(-1, 4) for i in order]
        label_parts = [np.asarray(labels[i], dtype=np.int16).reshape(-1) for i in order]
        counts = [len(part) for part in box_parts]
        no_crowd = [np.zeros(count, bool) for count in counts]
        crowd_parts = (
            no_crowd if crowd is None else [np.asarray(crowd[i], dtype=bool).reshape(-1) for i in order]
        )
        if not counts == [len(part) for part in label_parts] == [len(part) for part in crowd_parts]:
            raise UserError("Ground truth: boxes, labels and crowd flags of an image differ in number.")
        return cls(
            classes=tuple(classes),
            image_ids=tuple(image_ids[i] for i in order),
            sizes=np.asarray(sizes, dtype=np.int32).reshape(-1, 2)[order],
            offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *box_parts]),
            labels=np.concatenate([np.zeros(0, np.int16), *label_parts]),
            crowd=np.concatenate([np.zeros(0, bool), *crowd_parts]),
        )

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset) -> GroundTruth:
        """Reads a split of the detection schema; decodes no image.

        Args:
            dataset: A split of `datasets_builders.load`.

        Returns:
            The ground truth, images sorted by name.
        """
        features = dataset.features["objects"]
        classes = features["category"].feature.names
        table = dataset.select_columns(["image_id", "width", "height", "objects"]).with_format("arrow")[:]
        objects = table.column("objects").combine_chunks()
        box = objects.field("bbox").flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
        label = objects.field("category").flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(objects.field("bbox").value_lengths().to_numpy(zero_copy_only=False))[:-1]
        return cls.from_images(
            classes=classes,
            image_ids=table.column("image_id").to_pylist(),
            sizes=np.stack([table.column("width").to_numpy(), table.column("height").to_numpy()], axis=1),
            boxes=np.split(box, ends),
            labels=np.split(label, ends),
        )


def evaluate(ground_truth: GroundTruth, detections: Detections) -> Metrics:
    """Computes COCO metrics of detections on a split.

    Args:
        ground_truth: The split's labels.
        detections: Answers on exactly the same images, with the same class names in the same order.

    Returns:
        The metrics in percent, the same to the last bit on every call.

    Raises:
        UserError: Images or classes differ between the two.
    """
    return _metrics(ground_truth, detections, _accumulated(_matched(ground_truth, detections)))


def evaluate_reference(ground_truth: GroundTruth, detections: Detections) -> Metrics:
    """Computes the same through pycocotools, the definition: far slower, to check `evaluate` against."""
    return _metrics(ground_truth, detections, _accumulated(_matched_by_reference(ground_truth, detections)))


def match(ground_truth: GroundTruth, detections: Detections) -> list[dict[str, Any]]:
    """Decides for every detection, at every IoU threshold, whether it finds an object.

    Args:
        ground_truth: The split's labels.
        detections: Answers on exactly the same images and classes.

    Returns:
        COCO's entries, one a class and image where either has a box: `image_id` and `category_id` (from 1); of its n
        detections, by falling score, `dtIds` (rows of `detections`, from 1), `dtScores`, and at the 10 IoU thresholds
        `dtMatches` (10, n; the `gtIds` that they find, 0 for none) and `dtIgnore` (10, n); of its m objects `gtIds`
        (rows of `ground_truth`, from 1), `gtIgnore` (m), and `gtMatches` (10, m; the `dtIds` that find them, 0 for
        none).

    Raises:
        UserError: Images or classes differ between the two.
    """
    return [entry for entry in _matched(ground_truth, detections).evalImgs if entry is not None]


def _matched(ground_truth: GroundTruth, detections: Detections) -> Any:
    """Returns the fast evaluator after its matching."""
    import hotcoco

    global _fast_evaluator_process
    if _fast_evaluator_process not in (None, os.getpid()):
        # Its thread pool does not survive a fork: waiting for it would never end. The numbers are equal.
        _log.warning("Process forked after an evaluation: evaluating with pycocotools, which takes longer.")
        return _matched_by_reference(ground_truth, detections)
    _fast_evaluator_process = os.getpid()
    _check_same_split(ground_truth, detections)
    image, box = _ground_truth_columns(ground_truth)
    truth = hotcoco.COCO.from_arrays(
        [
            {"id": number + 1, "width": int(width), "height": int(height)}
            for number, (width, height) in enumerate(ground_truth.sizes)
        ],
        [{"id": number + 1, "name": name} for number, name in enumerate(ground_truth.classes)],
        image,
        ground_truth.labels.astype(np.int64) + 1,
        box,
        ids=np.arange(1, len(box) + 1),
        area=box[:, 2] * box[:, 3],
        iscrowd=ground_truth.crowd,
    )
    evaluation = hotcoco.COCOeval(truth, truth.load_res(_detection_rows(detections)), "bbox")
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = [_ALL_AREAS], ["all"]
    evaluation.params.max_dets = [MAX_DETECTIONS_PER_IMAGE]
    evaluation.evaluate()
    return evaluation


def _matched_by_reference(ground_truth: GroundTruth, detections: Detections) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    _check_same_split(ground_truth, detections)
    image, box = _ground_truth_columns(ground_truth)
    shared = {
        "images": [{"id": number + 1} for number in range(len(ground_truth.image_ids))],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(ground_truth.classes)],
    }
    truth, answers = COCO(), COCO()
    truth.dataset = shared | {
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(image[row]),
                "category_id": int(ground_truth.labels[row]) + 1,
                "bbox": box[row].tolist(),
                "area": float(box[row, 2] * box[row, 3]),
                "iscrowd": int(ground_truth.crowd[row]),
            }
            for row in range(len(box))
        ]
    }
    answers.dataset = shared | {
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(values[0]),
                "category_id": int(values[6]),
                "bbox": values[1:5],
                "area": values[3] * values[4],
                "iscrowd": 0,
                "score": values[5],
            }
            for row, values in enumerate(_detection_rows(detections).tolist())
        ]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        answers.createIndex()
        evaluation = COCOeval(truth, answers, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [_ALL_AREAS], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS_PER_IMAGE]
        evaluation.evaluate()
    return evaluation


def _accumulated(evaluation: Any) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        evaluation.accumulate()
    return evaluation.eval or {}


def _check_same_split(ground_truth: GroundTruth, detections: Detections) -> None:
    if ground_truth.classes != detections.classes:
        raise UserError(
            f"Detections are for classes {detections.classes}, the dataset has {ground_truth.classes}."
        )
    if ground_truth.image_ids != detections.image_ids:
        truth, answers = set(ground_truth.image_ids), set(detections.image_ids)
        example = min(truth ^ answers)
        raise UserError(
            f"Detections are not on the images of this split: {len(truth - answers)} missing,"
            f" {len(answers - truth)} foreign (such as {example!r})."
        )


def _ground_truth_columns(ground_truth: GroundTruth) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    image = np.repeat(np.arange(1, len(ground_truth.image_ids) + 1), np.diff(ground_truth.offsets))
    return image, ground_truth.boxes.astype(np.float64)


def _detection_rows(detections: Detections) -> NDArray[np.float64]:
    """(n, 7): image, x, y, width, height, score, class; image and class from 1, sizes exact in float64."""
    corners = detections.boxes.astype(np.float64)
    return np.column_stack(
        [
            detections.image_index + 1,
            corners[:, :2],
            corners[:, 2:] - corners[:, :2],
            detections.scores,
            detections.labels.astype(np.int64) + 1,
        ]
    )


def _metrics(ground_truth: GroundTruth, detections: Detections, arrays: dict[str, Any]) -> Metrics:
    """Reduces precision (10 IoUs, 101 recalls, classes, 1, 1) and recall (10 IoUs, classes, 1, 1)."""
    precision = np.asarray(arrays["precision"], dtype=np.float64)[:, :, :, 0, 0]
    recall = np.asarray(arrays["recall"], dtype=np.float64)[:, :, 0, 0]
    objects = np.bincount(ground_truth.labels[~ground_truth.crowd], minlength=len(ground_truth.classes))
    present = recall[0] >= 0  # COCO marks classes without ground truth by -1

    def percent(values: NDArray[np.float64]) -> float:
        # Exact summation: the same bits on every processor, whatever NumPy vectorises there.
        return 100.0 * math.fsum(values.ravel().tolist()) / values.size

    per_class = tuple(
        ClassMetrics(
            name=name,
            objects=int(objects[k]),
            ap50=percent(precision[0, :, k]) if present[k] else None,
            ap50_95=percent(precision[:, :, k]) if present[k] else None,
            recall=percent(recall[:, k]) if present[k] else None,
        )
        for k, name in enumerate(ground_truth.classes)
    )
    return Metrics(
        map50=percent(precision[0][:, present]),
        map50_95=percent(precision[:, :, present]),
        recall=percent(recall[:, present]),
        images=len(ground_truth.image_ids),
        objects=int(objects.sum()),
        detections=len(detections),
        per_class=per_class,
    )
