"""Readers of the annotation formats in which owners publish their data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from datasets_builders.base import RawObject

# A VOC file of a few hundred boxes has some 100 kB.
MAX_XML_BYTES = 10_000_000


class FormatError(ValueError):
    """An annotation file that cannot be read; the message says why."""


@dataclass(frozen=True)
class VocAnnotation:
    """A VOC XML file: the picture's file name and (width, height) as stated in it, and its objects."""

    filename: str
    size: tuple[int, int] | None
    objects: list[RawObject]


def files_by_stem(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Returns the files of a folder with one of the suffixes (any case), by file stem, in sorted order.

    Hidden files, which operating systems leave behind, are passed over.
    """
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )
    return {path.stem: path for path in found}


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
