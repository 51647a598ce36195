"""Readers of the annotation formats in which owners publish their data: VOC XML and YOLO text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import yaml
from defusedxml import DefusedXmlException

from datasets_builders.base import RawObject

# A VOC file of a few hundred boxes has some 100 kB.
MAX_XML_BYTES = 10_000_000
MAX_YOLO_BYTES = 10_000_000
MAX_NAMES_BYTES = 1_000_000


class FormatError(ValueError):
    """An annotation file that cannot be read; the message says why."""


@dataclass(frozen=True)
class VocAnnotation:
    """A VOC XML file: the picture's file name and (width, height) as stated in it, and its objects."""

    filename: str
    size: tuple[int, int] | None
    objects: list[RawObject]


def read_voc(path: Path) -> VocAnnotation:
    """Reads a VOC XML file.

    A box's edges are taken as written, in continuous coordinates: x = xmin, width = xmax - xmin. Tools differ
    here (the original VOC counts pixels from 1, inclusive); against pixel masks of NEU-DET's images this
    reading fits best.

    Raises:
        FormatError: The file is not XML, defines entities, is too large, or lacks an element.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise FormatError(f"larger than {MAX_XML_BYTES} bytes")
        root = defusedxml.ElementTree.fromstring(path.read_bytes(), forbid_dtd=True)
        width, height = root.findtext("size/width"), root.findtext("size/height")
        return VocAnnotation(
            filename=(root.findtext("filename") or "").strip(),
            size=(int(width), int(height)) if width and height else None,
            objects=[_voc_object(element) for element in root.findall("object")],
        )
    except DefusedXmlException as error:
        raise FormatError(
            f"document type or entity definitions are refused ({type(error).__name__})"
        ) from error
    except ParseError as error:
        raise FormatError(f"not XML ({error})") from error
    except FormatError:
        raise
    except (OSError, LookupError, ValueError) as error:
        raise FormatError(f"{error}") from error


def _voc_object(element: Element) -> RawObject:
    edges = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{tag}")
        if text is None:
            raise FormatError(f"an object has no {tag}")
        edges.append(float(text))
    left, top, right, bottom = edges
    return RawObject((element.findtext("name") or "").strip(), (left, top, right - left, bottom - top))


def read_yolo(path: Path, classes: Mapping[int, str]) -> list[RawObject]:
    """Reads a YOLO label file: a line `class x_centre y_centre width height` for each object.

    Lines with more values are outlines, `class x1 y1 x2 y2 ...`; their extent is the box.

    Args:
        path: The label file. Where it does not exist the image has no defect.
        classes: Class number -> name. Other numbers stay numbers, for the builder to refuse.

    Returns:
        Objects whose boxes are fractions of the image's size (`RawExample.fractions`).

    Raises:
        FormatError: The file is too large, is not text, or has a line of another form.
    """
    try:
        if path.stat().st_size > MAX_YOLO_BYTES:
            raise FormatError(f"larger than {MAX_YOLO_BYTES} bytes")
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{error}") from error
    return [_yolo_object(line, number, classes) for number, line in enumerate(lines, start=1) if line.strip()]


def read_yolo_names(path: Path) -> dict[int, str]:
    """Reads which class number means what: `names` of a data.yaml, or a text file of one name a line from 0 on.

    Raises:
        FormatError: It is no such file, or a line between names is empty.
    """
    try:
        if path.stat().st_size > MAX_NAMES_BYTES:
            raise FormatError(f"larger than {MAX_NAMES_BYTES} bytes")
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix.lower() not in (".yaml", ".yml"):
            listed = [line.strip() for line in text.rstrip().splitlines()]
            if "" in listed:
                # Some tools count such a line as a class, others do not.
                raise FormatError(f"line {listed.index('') + 1} is empty, which leaves the numbers open")
            return dict(enumerate(listed))
        names: Any = yaml.safe_load(text)["names"]
        pairs = dict(names.items() if isinstance(names, dict) else enumerate(names))
        # Never turned into text before: nested aliases would expand without end.
        if not all(isinstance(value, int | str) for pair in pairs.items() for value in pair):
            raise TypeError("names must be a list of texts, or numbers with texts")
        return {int(index): str(name).strip() for index, name in pairs.items()}
    except FormatError:
        raise
    except (
        OSError,
        yaml.YAMLError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise FormatError(f"{type(error).__name__} {error}") from error


def _yolo_object(line: str, number: int, classes: Mapping[int, str]) -> RawObject:
    try:
        label, *values = line.split()
        index, numbers = int(label), [float(value) for value in values]
    except ValueError as error:
        raise FormatError(f"line {number}: {error}") from error
    category = classes.get(index, str(index))
    if len(numbers) == 4:
        x, y, width, height = numbers
        return RawObject(category, (x - width / 2, y - height / 2, width, height))
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        left, top = min(numbers[::2]), min(numbers[1::2])
        return RawObject(category, (left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top))
    raise FormatError(f"line {number}: {len(numbers)} values after the class, not 4 or an outline")
