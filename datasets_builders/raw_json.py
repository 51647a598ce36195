"""Readers of annotations in JSON: labelme files and COCO."""

from __future__ import annotations

import base64
import binascii
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_builders.base import RawObject
from datasets_builders.raw_formats import FormatError

# A labelme file carries its whole picture; a COCO file the boxes of a whole dataset.
MAX_LABELME_BYTES = 100_000_000
MAX_COCO_BYTES = 1_000_000_000

Point = tuple[float, float]


@dataclass(frozen=True)
class Outline:
    """One labelme shape: its label, and its corners (x, y) in pixels."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class LabelmeAnnotation:
    """A labelme file: its picture where that is embedded, (width, height) as stated, and its outlines."""

    image: bytes | None
    size: tuple[int, int] | None
    outlines: list[Outline]


@dataclass(frozen=True)
class CocoImage:
    """One picture of a COCO file: its name, (width, height) where stated, and its objects."""

    file_name: str
    size: tuple[int, int] | None
    objects: list[RawObject]


def read_json(path: Path, limit: int) -> Any:
    """Reads a JSON file of at most `limit` bytes.

    Raises:
        FormatError: The file is larger, or is not JSON.
    """
    try:
        if path.stat().st_size > limit:
            raise FormatError(f"larger than {limit} bytes")
        return json.loads(path.read_bytes())
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        # A plain ValueError is a number of thousands of digits.
        raise FormatError(f"not JSON ({error})") from error
    except RecursionError as error:
        raise FormatError("nested too deeply") from error


def read_labelme(path: Path) -> LabelmeAnnotation:
    """Reads a labelme file; a rectangle becomes the outline of its four corners.

    Raises:
        FormatError: The file is not labelme's JSON, is too large, its picture is not base64, or it has a
            shape that is neither polygon nor rectangle.
    """
    content = read_json(path, MAX_LABELME_BYTES)
    try:
        embedded = content.get("imageData")
        image = base64.b64decode(embedded, validate=True) if embedded else None
        width, height = content.get("imageWidth"), content.get("imageHeight")
        return LabelmeAnnotation(
            image=image,
            size=(int(width), int(height)) if width and height else None,
            outlines=[_outline(shape) for shape in content["shapes"]],
        )
    except binascii.Error as error:
        raise FormatError(f"the picture in it is not base64 ({error})") from error
    except FormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"not a labelme file ({type(error).__name__}: {error})") from error


def _outline(shape: dict[str, Any]) -> Outline:
    points = tuple((float(x), float(y)) for x, y in shape["points"])
    kind = shape.get("shape_type") or "polygon"
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = ((left, top), (right, top), (right, bottom), (left, bottom))
    elif kind != "polygon" or len(points) < 3:
        raise FormatError(f"a shape is a {kind} of {len(points)} points; polygons and rectangles are read")
    return Outline(str(shape["label"]).strip(), points)


def read_coco(path: Path) -> list[CocoImage]:
    """Reads a COCO detection file, pictures in the order of their ids; crowd regions are left out.

    Raises:
        FormatError: The file is not COCO's JSON, is too large, refers to what it does not hold, or gives one id
            twice.
    """
    content = read_json(path, MAX_COCO_BYTES)
    try:
        names = {int(item["id"]): str(item["name"]).strip() for item in content["categories"]}
        pictures = {int(item["id"]): item for item in content["images"]}
        for what, by_id in (("categories", names), ("images", pictures)):
            # Files that were put together: which of the two an annotation is of cannot be told.
            if len(by_id) < len(content[what]):
                raise FormatError(f"two of its {what} have one id")
        objects: dict[int, list[RawObject]] = defaultdict(list)
        for item in content["annotations"]:
            owner, category = int(item["image_id"]), int(item["category_id"])
            if owner not in pictures or category not in names:
                raise FormatError(f"annotation {item.get('id')} is of image {owner}, category {category}")
            if not item.get("iscrowd"):
                x, y, width, height = (float(value) for value in item["bbox"])
                objects[owner].append(RawObject(names[category], (x, y, width, height)))
        return [
            CocoImage(str(item["file_name"]), _stated_size(item), objects[number])
            for number, item in sorted(pictures.items())
        ]
    except FormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"not a COCO file ({type(error).__name__}: {error})") from error


def _stated_size(item: dict[str, Any]) -> tuple[int, int] | None:
    width, height = item.get("width"), item.get("height")
    return (int(width), int(height)) if width and height else None
