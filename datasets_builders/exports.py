"""Prepared datasets as files for other tools: COCO JSON with images, or a YOLO folder."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import track

from datasets_builders import prepared, registry
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.images import decode_image, decode_mask, encode_png
from datasets_builders.schema import SPLITS
from datasets_builders.storage import atomic_folder

if TYPE_CHECKING:
    import datasets

FORMATS = ("coco", "yolo")
# The name that YOLO tools give to the split.
YOLO_SPLITS = {"train": "train", "validation": "val"}
# MPO is what Pillow calls a JPEG that holds further pictures, as phones write them.
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
_UNFIT_FOR_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f]')
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, and the number of images and boxes of each split."""

    folder: Path
    images: dict[str, int]
    boxes: dict[str, int]


def export(name: str, style: str, out: Path) -> Exported:
    """Writes a dataset in the files of other tools; the folder appears whole or not at all.

    Images are the stored bytes. Only where EXIF asks to turn an image, which tools do or do not, it is written
    as PNG of the turned pixels.

    Args:
        name: Name of a prepared dataset, such as `gc10_det/mini`.
        style: `coco`: `annotations/instances_SPLIT.json` and `SPLIT/`; `yolo`: `data.yaml`, `images/SPLIT`,
            `labels/SPLIT`, where the validation split is called `val` and images without defects have an
            empty label file.
        out: A folder that does not exist yet.

    Raises:
        UserError: The dataset is not prepared, the style is unknown, or the folder exists or cannot be made.
    """
    card = registry.card(name)
    _check(style, out)
    return write_export(
        card, {split: prepared.load(name, split) for split in SPLITS}, style, out, prepared.fingerprint(name)
    )


def write_export(
    card: registry.DatasetCard,
    splits: Mapping[str, datasets.Dataset],
    style: str,
    out: Path,
    fingerprint: str,
) -> Exported:
    """Writes splits of any detection dataset in the files of other tools; see `export`.

    Where objects have a `score`, COCO's annotations have it too.

    Args:
        card: Names, classes and origin to write beside the data.
        splits: Split -> its rows, with the detection features of the card's classes.
        style: `coco` or `yolo`.
        out: A folder that does not exist yet.
        fingerprint: Says which state of the data this is.

    Raises:
        UserError: The style is unknown, or the folder exists or cannot be made.
    """
    _check(style, out)
    try:
        with atomic_folder(out) as folder:
            if style == "coco":
                boxes = {
                    split: _write_coco(folder, card, split, dataset, fingerprint)
                    for split, dataset in splits.items()
                }
            else:
                boxes = {split: _write_yolo(folder, split, dataset) for split, dataset in splits.items()}
                _write_data_yaml(folder, card, splits)
            _write_origin(folder, card, fingerprint)
    except OSError as error:
        raise UserError(
            f"Cannot write {out}: {error.strerror or error}. Choose another with --out."
        ) from error
    return Exported(out, {split: len(dataset) for split, dataset in splits.items()}, boxes)


def _check(style: str, out: Path) -> None:
    if style not in FORMATS:
        raise unknown_name("format", style, FORMATS, "python -m datasets_builders export --help")
    if out.exists():
        raise UserError(f"{out} exists already: choose another folder with --out, or remove it first.")


def _files(dataset: datasets.Dataset, split: str) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Yields file name, bytes to write and row of every image; names are unique on every file system."""
    from datasets_builders.building import undecoded

    taken: set[str] = set()
    quiet = not sys.stderr.isatty()
    rows = track(
        undecoded(dataset), f"Writing {split}", console=Console(stderr=True), transient=True, disable=quiet
    )
    for row in rows:
        data = row["image"]["bytes"]
        with Image.open(io.BytesIO(data)) as image:
            suffix = _SUFFIXES[image.format or ""]
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
        if turned:
            data, suffix = encode_png(decode_image(data)), ".png"
        stem = _UNFIT_FOR_NAMES.sub("_", row["image_id"]).strip(". ") or "_"
        unique, number = stem, 2
        while unique.casefold() in taken:
            unique, number = f"{stem}~{number}", number + 1
        taken.add(unique.casefold())
        yield unique + suffix, data, row


def _write_coco(
    folder: Path, card: registry.DatasetCard, split: str, dataset: datasets.Dataset, fingerprint: str
) -> int:
    """Writes one split; returns its number of boxes. Category ids count from 1, in the order of the classes."""
    from pycocotools import mask as coco_mask

    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id, (name, data, row) in enumerate(_files(dataset, split), start=1):
        (folder / split / name).write_bytes(data)
        images.append({"id": image_id, "file_name": name, "width": row["width"], "height": row["height"]})
        instances = None
        if card.masks == "instance" and row["mask"] is not None:
            instances = decode_mask(row["mask"]["bytes"])
        objects = row["objects"]
        for place, number in enumerate(objects["id"]):
            annotation = {
                "id": number,
                "image_id": image_id,
                "category_id": objects["category"][place] + 1,
                "bbox": objects["bbox"][place],
                "area": objects["area"][place],
                "iscrowd": 0,
            }
            if "score" in objects:
                annotation["score"] = objects["score"][place]
            if instances is not None:
                pixels = np.asfortranarray(instances == place + 1, dtype=np.uint8)
                encoded = coco_mask.encode(pixels)
                annotation["segmentation"] = {**encoded, "counts": encoded["counts"].decode("ascii")}
            annotations.append(annotation)
    content = {
        "info": {"description": card.title, "url": card.homepage, "version": fingerprint},
        "licenses": [{"id": 1, "name": card.licence, "url": card.homepage}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(card.classes, start=1)],
        "images": images,
        "annotations": annotations,
    }
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return len(annotations)


def _write_yolo(folder: Path, split: str, dataset: datasets.Dataset) -> int:
    """Writes one split; returns its number of boxes."""
    images, labels = folder / "images" / YOLO_SPLITS[split], folder / "labels" / YOLO_SPLITS[split]
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    boxes = 0
    for name, data, row in _files(dataset, split):
        (images / name).write_bytes(data)
        lines = []
        objects = row["objects"]
        for category, (x, y, width, height) in zip(objects["category"], objects["bbox"], strict=True):
            values = (
                (x + width / 2) / row["width"],
                (y + height / 2) / row["height"],
                width / row["width"],
                height / row["height"],
            )
            lines.append(f"{category} " + " ".join(f"{value:.9g}" for value in values) + "\n")
        (labels / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
        boxes += len(lines)
    return boxes


def _write_data_yaml(folder: Path, card: registry.DatasetCard, splits: Iterable[str]) -> None:
    content: dict[str, Any] = {YOLO_SPLITS[split]: f"images/{YOLO_SPLITS[split]}" for split in splits}
    content["names"] = dict(enumerate(card.classes))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _write_origin(folder: Path, card: registry.DatasetCard, fingerprint: str) -> None:
    """Says beside the files whose they are, under what licence, and which state of the data this is."""
    facts = {
        card.name: card.title,
        "Homepage": card.homepage,
        "Licence": card.licence,
        "Citation": card.citation,
        "Fingerprint": fingerprint,
    }
    text = "".join(f"{what}: {fact}\n" for what, fact in facts.items() if fact)
    (folder / "ORIGIN.txt").write_text(text, encoding="utf-8")
