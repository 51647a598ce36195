"""A finetuned detector on images of one's own: as a Python object, and as the command `predict`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agssp.display import quieten_libraries
from agssp.drawing import draw_boxes
from benchmark.trained import Trained, build, find
from datasets_builders.corpus.files import Skipped, images_below
from datasets_builders.errors import UserError
from datasets_builders.images import ImageError, decode_image, plain_bytes
from datasets_builders.storage import atomic_folder

MAX_FILE_BYTES = 200 * 2**20
ANSWERS = "detections.json"
_AT_ONCE = 32


@dataclass(frozen=True)
class Detection:
    """One defect that was found.

    Attributes:
        category: Its class.
        score: 0 to 1.
        box: x, y, width and height in pixels of the image, x and y from its left and top edge.
    """

    category: str
    score: float
    box: tuple[float, float, float, float]


class FinetunedDetector:
    """A detector with its weights, on one device.

    Attributes:
        classes: What it tells apart.
        threshold: Score from which on detections are given.
    """

    def __init__(self, trained: Trained, threshold: float, device: str) -> None:
        quieten_libraries()
        self.classes = trained.description.classes
        self.threshold = threshold
        self._recipe = trained.description.recipe
        self._model = build(trained).to(device)

    def detect(self, image: Path | str | bytes) -> list[Detection]:
        """Finds the defects of one image.

        Args:
            image: A file (JPEG, PNG, BMP, TIFF, WebP), or the bytes of one.

        Returns:
            Highest score first.

        Raises:
            UserError: It is no image that can be read.
        """
        return next(self.detect_all([image]))

    def detect_all(self, images: Iterable[Path | str | bytes]) -> Iterator[list[Detection]]:
        """Finds the defects of many images; see `detect`."""
        waiting = iter(images)
        while some := list(islice(waiting, _AT_ONCE)):
            yield from self._detect([_encoded(image) for image in some])

    def _detect(self, encoded: Sequence[tuple[bytes, tuple[int, int]]]) -> Iterator[list[Detection]]:
        """Shows images to the detector just as its validation did."""
        import datasets
        import torch

        from baselines.training.data import validation_loader
        from datasets_builders.schema import detection_features

        nothing: dict[str, list[Any]] = {"id": [], "bbox": [], "area": [], "category": []}
        rows = [
            {
                "image": {"bytes": data, "path": None},
                "image_id": str(number),
                "width": size[0],
                "height": size[1],
                "objects": nothing,
                "mask": None,
            }
            for number, (data, size) in enumerate(encoded)
        ]
        split = datasets.Dataset.from_list(rows, features=detection_features(self.classes))
        with torch.no_grad():
            for batch in validation_loader(split, self._recipe):
                for sample in self._model.test_step(batch):
                    yield self._answers(sample.pred_instances)

    def _answers(self, found: Any) -> list[Detection]:
        boxes, scores, labels = (found[name].float().cpu().numpy() for name in ("bboxes", "scores", "labels"))
        kept = [row for row in np.argsort(-scores, kind="stable") if scores[row] >= self.threshold]
        return [
            Detection(
                self.classes[int(labels[row])],
                float(scores[row]),
                tuple(float(v) for v in (*boxes[row][:2], *(boxes[row][2:] - boxes[row][:2]))),  # type: ignore[arg-type]
            )
            for row in kept
        ]


def load_detector(
    source: Path | str, *, threshold: float | None = None, device: str = "cpu", weights: Path | None = None
) -> FinetunedDetector:
    """Loads a finetuned detector.

    Args:
        source: What `python -m benchmark export` made (the folder, or its weights file), or a record.
        threshold: Score from which on detections are given; None for the one of the best F1 on the validation images.
        device: `cpu` or `cuda`.
        weights: Of a record; None for those that its training left on this machine.

    Raises:
        UserError: There is no such detector, or its threshold is not known and not given.
    """
    trained = find(Path(source), weights, needs_threshold=threshold is None)
    chosen = threshold if threshold is not None else trained.description.threshold
    if chosen is None:
        raise UserError(f"{source} does not say from which score on detections count: give a threshold.")
    return FinetunedDetector(trained, chosen, device)


def predict(
    source: Path,
    images: Sequence[Path],
    out: Path | None,
    *,
    threshold: float | None,
    device: str,
    weights: Path | None,
) -> dict[str, Any]:
    """Runs a detector over files and folders; writes its answers and pictures with boxes.

    Args:
        source: As of `load_detector`.
        images: Image files, and folders, of which every image below is taken.
        out: Folder to make: `detections.json`, and each image with its boxes; None to write nothing.
        threshold: As of `load_detector`.
        device: `cpu` or `cuda`.
        weights: As of `load_detector`.

    Returns:
        `threshold`, `images` (file -> its detections) and `skipped` (file -> why).

    Raises:
        UserError: There is nothing to read, or `out` is there already or cannot be written.
    """
    if out is not None and out.exists():
        raise UserError(f"{out} exists already: choose another folder with --out, or remove it first.")
    files, skipped = _listed(images)
    detector = load_detector(source, threshold=threshold, device=device, weights=weights)
    found: dict[str, list[Detection]] = {}
    for start in range(0, len(files), _AT_ONCE):
        readable = {}
        for path in files[start : start + _AT_ONCE]:
            try:
                readable[str(path)] = _encoded(path)
            except UserError as error:
                skipped[str(path)] = str(error).removeprefix(f"{path}: ")
        found |= zip(readable, detector._detect(list(readable.values())), strict=True) if readable else {}
    outcome = {
        "threshold": detector.threshold,
        "images": {name: [asdict(one) for one in answers] for name, answers in found.items()},
        "skipped": skipped,
    }
    if out is not None:
        _write(out, found, outcome)
    return outcome


def _listed(images: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    files: list[Path] = []
    skipped: dict[str, str] = {}
    for path in images:
        if path.is_dir():
            for item in images_below(path, path):
                if isinstance(item, Skipped):
                    skipped[str(path / item.name)] = item.reason
                else:
                    files.append(item.path)
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"There is no image or folder {path}.")
    if not files:
        raise UserError(f"There is no image in {', '.join(map(str, images))}.")
    return list(dict.fromkeys(files)), skipped


def _encoded(image: Path | str | bytes) -> tuple[bytes, tuple[int, int]]:
    name = "the image" if isinstance(image, bytes) else str(image)
    try:
        if not isinstance(image, bytes) and Path(image).stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{name}: larger than {MAX_FILE_BYTES} bytes")
        return plain_bytes(image if isinstance(image, bytes) else Path(image).read_bytes())
    except ImageError as error:
        raise UserError(f"{name}: {error}") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from error


def _write(out: Path, found: dict[str, list[Detection]], outcome: dict[str, Any]) -> None:
    taken: set[str] = set()
    try:
        with atomic_folder(out) as folder:
            text = json.dumps(outcome, indent=1, ensure_ascii=False)
            (folder / ANSWERS).write_text(text + "\n", encoding="utf-8")
            for name, answers in found.items():
                stem, number = Path(name).stem, 2
                while stem.casefold() in taken:  # of another folder
                    stem, number = f"{Path(name).stem}~{number}", number + 1
                taken.add(stem.casefold())
                picture = Image.fromarray(decode_image(Path(name).read_bytes()))
                draw_boxes(picture, [(one.box, f"{one.category} {one.score:.2f}") for one in answers])
                picture.save(folder / f"{stem}.png")
    except OSError as error:
        raise UserError(
            f"Cannot write {out}: {error.strerror or error}. Choose another with --out."
        ) from error
