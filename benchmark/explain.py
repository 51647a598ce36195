"""What a record's detector looks at and what it detects, image by image, beside another's (the paper's Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import datasets_builders
from benchmark.detections import Detections
from benchmark.evaluate import GroundTruth
from benchmark.explain_sheet import Answer, Boxes, Example, Heading, sheet
from benchmark.matching import IOU, Matching, f1_of_images, match_all
from benchmark.records import RECORD_FILE, Record, read_record
from benchmark.verify import check_fingerprint
from datasets_builders.errors import UserError
from datasets_builders.images import decode_image
from datasets_builders.storage import atomic_file

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, eq=False)
class Side:
    """A record with its detections at the last epoch, and what they find.

    Attributes:
        record: The record.
        detections: At its last epoch.
        matching: Of these with the objects.
        threshold: Score from which on detections are shown and counted.
        f1: (images,) of each image.
    """

    record: Record
    detections: Detections
    matching: Matching
    threshold: float
    f1: NDArray[np.float64]


def explain(
    paths: Sequence[Path],
    out: Path,
    *,
    number: int,
    ids: Sequence[str],
    threshold: float | None,
    weights: Sequence[Path | None],
    detections_only: bool,
    seed: int,
) -> dict[str, Any]:
    """Writes the sheet of one record, or of two beside each other, as PNG.

    Args:
        paths: One or two records of the same data: `record.json`, or the folder that holds it.
        out: The PNG file.
        number: How many images to draw where `ids` names none.
        ids: Images to draw, in this order. Where it is empty, those are drawn whose F1 differs most between the two
            records, in falling order; equal ones, and all of a single record, in random order.
        threshold: Score from which on detections are shown and counted; None takes for each record the one with the
            highest F1 over the whole split.
        weights: Of each record; None takes those that its training left on this machine.
        detections_only: Whether to leave the attention maps out; then no weights are needed.
        seed: Of the random order.

    Returns:
        The file, and of each record its threshold and counts over the split, and the images with their F1.

    Raises:
        UserError: A record, its detections, its data or its weights are missing or do not fit together; or the file
            cannot be written.
    """
    records = [read_record(path) for path in paths]
    if len({record.dataset.fingerprint for record in records}) > 1:
        raise UserError("The records are of different data: they have no images to compare.")
    check_fingerprint(records[0].dataset)
    split: Any = datasets_builders.load(records[0].dataset.name, "validation")
    ground_truth = GroundTruth.from_dataset(split)
    sides = [
        _side(record, path, ground_truth, threshold) for record, path in zip(records, paths, strict=True)
    ]
    chosen = _chosen(sides, ground_truth.image_ids, number, ids, seed)
    rows = {image_id: row for row, image_id in enumerate(split["image_id"])}
    images = split.select([rows[ground_truth.image_ids[place]] for place in chosen])
    attended = (
        [] if detections_only else [_attention(*pair, images) for pair in zip(records, weights, strict=True)]
    )
    examples = [
        _example(place, number, images, ground_truth, sides, [maps[number] for maps in attended])
        for number, place in enumerate(chosen)
    ]
    names = [] if detections_only else _stage_names()
    how = "by name" if ids else "by lot" if len(sides) == 1 else "those whose F1 differs most"
    page = sheet(
        examples,
        [_heading(side) for side in sides],
        names,
        f"{records[0].dataset.name}, validation",
        f"{len(chosen)} of {len(rows)} images: {how}",
    )
    try:
        with atomic_file(out) as temporary:
            page.save(temporary, format="PNG")
    except OSError as error:
        raise UserError(
            f"Cannot write {out}: {error.strerror or error}. Choose another with --out."
        ) from error
    return {
        "file": str(out),
        "iou": IOU,
        "records": [{"key": side.record.key, "threshold": side.threshold, **_counts(side)} for side in sides],
        "images": {
            ground_truth.image_ids[place]: [float(side.f1[place]) for side in sides] for place in chosen
        },
    }


def _side(record: Record, path: Path, ground_truth: GroundTruth, threshold: float | None) -> Side:
    folder = path if path.is_dir() else path.parent
    detections = Detections.load(folder / record.detections_files[0])
    if detections.sha256() != record.last.detections_sha256:
        raise UserError(f"{folder / RECORD_FILE}: the detections beside it are not those that it names.")
    matching = match_all(ground_truth, detections)
    chosen = matching.best_threshold() if threshold is None else threshold
    image_of_object = np.repeat(np.arange(len(ground_truth.image_ids)), np.diff(ground_truth.offsets))
    images = len(ground_truth.image_ids)
    f1 = f1_of_images(matching, chosen, detections.image_index, image_of_object, images)
    return Side(record, detections, matching, chosen, f1)


def _chosen(
    sides: Sequence[Side], image_ids: Sequence[str], number: int, ids: Sequence[str], seed: int
) -> list[int]:
    """Returns places of images; see `explain`."""
    if ids:
        places = {image_id: place for place, image_id in enumerate(image_ids)}
        unknown = [image_id for image_id in ids if image_id not in places]
        if unknown:
            raise UserError(
                f"{len(unknown)} of the ids are not in the validation split (first: {unknown[0]!r}). It begins with:"
                f" {', '.join(image_ids[:3])}"
            )
        return [places[image_id] for image_id in dict.fromkeys(ids)]
    difference = np.abs(sides[0].f1 - sides[-1].f1)
    lot = np.random.default_rng(seed).permutation(len(image_ids))
    return [int(place) for place in np.lexsort((lot, -difference))[:number]]


def _attention(
    record: Record, weights: Path | None, images: datasets.Dataset
) -> list[tuple[NDArray[np.float32], ...]]:
    from benchmark.attention import attention_maps
    from benchmark.trained import stored_weights

    return attention_maps(record, weights or stored_weights(record), images)


def _stage_names() -> list[str]:
    from benchmark.attention import STRIDES

    return [f"attention, stride {stride}" for stride in STRIDES]


def _heading(side: Side) -> Heading:
    counts = _counts(side)
    return Heading(
        side.record.cell.folder.replace("_", " "),
        (
            f"mAP@.5 {side.record.last.metrics.map50:.1f}   ·   scores from {side.threshold:.2f}",
            f"whole split: TP {counts['right']}  FP {counts['wrong']}  FN {counts['missed']}  F1 {counts['f1']:.2f}",
        ),
    )


def _counts(side: Side) -> dict[str, Any]:
    right, wrong, missed = (
        int(chosen(side.threshold).sum())
        for chosen in (side.matching.right, side.matching.wrong, side.matching.missed)
    )
    return {
        "right": right,
        "wrong": wrong,
        "missed": missed,
        "f1": 2 * right / max(2 * right + wrong + missed, 1),
    }


def _example(
    place: int,
    number: int,
    images: datasets.Dataset,
    ground_truth: GroundTruth,
    sides: Sequence[Side],
    attended: Sequence[tuple[NDArray[np.float32], ...]],
) -> Example:
    """Gathers one row of the sheet: image `number` of the chosen ones, at `place` of the split."""
    import datasets as hf

    encoded = images.cast_column("image", hf.Image(decode=False))[number]["image"]["bytes"]
    objects = np.arange(ground_truth.offsets[place], ground_truth.offsets[place + 1])
    answers = []
    for position, side in enumerate(sides):
        rows = np.arange(side.detections.offsets[place], side.detections.offsets[place + 1])
        rows = rows[np.argsort(-side.detections.scores[rows], kind="stable")]
        right, wrong = (
            _detected(rows[chosen(side.threshold)[rows]], side.detections)
            for chosen in (side.matching.right, side.matching.wrong)
        )
        missed = _objects(objects[side.matching.missed(side.threshold)[objects]], ground_truth)
        answers.append(Answer(attended[position] if attended else (), right, wrong, missed))
    return Example(
        ground_truth.image_ids[place], decode_image(encoded), _objects(objects, ground_truth), tuple(answers)
    )


def _detected(rows: NDArray[np.int64], detections: Detections) -> Boxes:
    labels = [f"{detections.classes[detections.labels[row]]} {detections.scores[row]:.2f}" for row in rows]
    return Boxes(detections.boxes[rows], tuple(labels))


def _objects(rows: NDArray[np.int64], ground_truth: GroundTruth) -> Boxes:
    boxes = ground_truth.boxes[rows]
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    return Boxes(corners, tuple(ground_truth.classes[ground_truth.labels[row]] for row in rows))
