"""BSData: 1104 pictures of ball screw drives over their life, pitting drawn as outlines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets_builders.base import DetectionBuilder, RawExample, RawObject
from datasets_builders.components import MAX_INSTANCES
from datasets_builders.images import MAX_PIXELS, encode_png
from datasets_builders.raw_formats import FormatError
from datasets_builders.raw_json import LabelmeAnnotation, Outline, read_json, read_labelme

INDEX = "image_data.json"
LABELS = {"Pitting": "pitting"}
WITH, WITHOUT = "with outlines", "without outlines"
OFFICIAL_SPLITS = {"train": "train", "test": "validation"}
MAX_INDEX_BYTES = 10_000_000
# 01_200828110014_277500_315_crop_2: time (yymmddHHMMSS), then position along and around the screw.
_PLACE = re.compile(r"\d+_(?P<time>\d{12})_(?P<place>\d+_\d+)_crop")
# KGT1-S-060-A02_crop_0: screw and series, number of the picture in it.
_SERIES = re.compile(r"(?P<series>KGT\d+-[A-Z]+)-\d+-")


class BSData(DetectionBuilder):
    """Reads `data/*.jpg`, `label/*.json` (labelme) and the owner's index `image_data.json`.

    Pictures of one place over time, and of one series, stay in one split; the owner's own split tears them
    apart, see `BSDataOfficial`. Before the first picture of a place that shows pitting there is none: those
    pictures are free of defects. A later one without outlines is unlabelled, since pitting does not heal, and
    is left out, counted.
    """

    def read(self, raw: Path) -> Iterator[RawExample]:
        """Lists images with their labelme files; see `DetectionBuilder.read`."""
        root = self.locate(raw, "data", INDEX)
        images = self.files(root / "data", ".jpg")
        labels = self.files(root / "label", ".json")
        entries = self._index(root / INDEX)
        for stem in sorted(images.keys() - entries.keys()):
            self.problems.add(f"image that {INDEX} does not name", stem)
        first = _first_pitting(entries)
        for stem, entry in sorted(entries.items()):
            if not self.wanted(entry) or (stem not in images and stem not in labels):
                continue
            annotated = entry["annotations"] is not None
            if annotated and stem not in labels:
                self.problems.add("image without annotation", f"{stem}.json")
                continue
            match = _PLACE.match(stem)
            if not annotated and match and match["time"] > first.get(match["place"], "9"):
                self.cleaning.note("unlabelled image after the first pitting left out", stem, images=1)
                self.parts[WITHOUT] += 1
                continue
            example = self._example(stem, images.get(stem), labels[stem] if annotated else None)
            if example is not None:
                yield replace(example, split=self.split(entry))

    def wanted(self, entry: dict[str, Any]) -> bool:
        """Tells whether the image of an entry of the index belongs to this dataset."""
        return True

    def split(self, entry: dict[str, Any]) -> str | None:
        """Returns the split that an entry of the index asks for; None leaves it to the place's hash."""
        return None

    def _index(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            content = read_json(path, MAX_INDEX_BYTES)
            return {
                Path(item["filename"]).stem: {key: item[key] for key in ("annotations", "train_test_split")}
                for item in content["images"]
            }
        except (FormatError, KeyError, TypeError, AttributeError) as error:
            self.problems.add("unreadable index", f"{INDEX}: {error}")
            return {}

    def _example(self, stem: str, image: Path | None, label: Path | None) -> RawExample | None:
        """Puts image and annotation together; the picture within the annotation serves where there is no file."""
        try:
            labelme = read_labelme(label) if label else LabelmeAnnotation(None, None, [])
            outlines = self._outlines(stem, labelme)
            mask, objects = draw(outlines, labelme.size) if outlines else (None, [])
        except FormatError as error:
            self.problems.add("unreadable annotation", f"{stem}.json: {error}")
            return None
        picture = image or labelme.image
        if picture is None:
            self.problems.add("annotation without image", f"{stem}.json")
            return None
        return RawExample(
            stem,
            picture,
            objects,
            encode_png(mask) if mask is not None else None,
            labelme.size,
            group=group(stem),
            part=WITH if label else WITHOUT,
        )

    def _outlines(self, stem: str, labelme: LabelmeAnnotation) -> list[Outline]:
        found: list[Outline] = []
        for outline in labelme.outlines:
            if outline.label not in LABELS:
                self.problems.add("unknown class", f"{stem}.json: {outline.label!r}")
            elif outline in found:
                self.cleaning.note("outline that is there twice counted once", stem)
            else:
                found.append(outline)
        return found


class BSDataOfficial(BSData):
    """Only the 394 pictures of the owner's own split, for comparison with numbers that others report on it."""

    def wanted(self, entry: dict[str, Any]) -> bool:
        """Leaves out what the owner's split leaves out."""
        return entry["train_test_split"] in OFFICIAL_SPLITS

    def split(self, entry: dict[str, Any]) -> str | None:
        """Takes the owner's word."""
        return OFFICIAL_SPLITS[entry["train_test_split"]]


def _first_pitting(entries: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Returns when each place first shows pitting: place -> time, for places that do."""
    first: dict[str, str] = {}
    for stem, entry in entries.items():
        match = _PLACE.match(stem)
        if match and entry["annotations"] is not None:
            first[match["place"]] = min(match["time"], first.get(match["place"], match["time"]))
    return first


def group(stem: str) -> str:
    """Returns what pictures must share a split with this one: its place on the screw, or its series."""
    match = _PLACE.match(stem)
    if match:
        return match["place"]
    match = _SERIES.match(stem)
    return match["series"] if match else stem


def draw(outlines: list[Outline], size: tuple[int, int] | None) -> tuple[np.ndarray, list[RawObject]]:
    """Turns outlines into a mask by instance and objects; parts outside the image do not count.

    Boxes are the outlines' extents, areas the pixels that an outline touches. Where outlines overlap, the
    smaller one is seen.

    Args:
        outlines: At least one outline, corners in pixels.
        size: (width, height) of the image.

    Returns:
        uint8 (height, width) with value k for the k-th outline, and the objects.

    Raises:
        FormatError: The size is missing or absurd, there are too many outlines for 8-bit values, or an
            outline has corners that are no numbers.
    """
    if size is None or not 0 < size[0] * size[1] <= MAX_PIXELS or min(size) < 1:
        raise FormatError(f"imageWidth and imageHeight are {size}")
    if len(outlines) > MAX_INSTANCES:
        raise FormatError(f"{len(outlines)} outlines, more than {MAX_INSTANCES}")
    limit = np.array(size, float)
    objects, drawn = [], []
    for outline in outlines:
        points = np.array(outline.points, float)
        if not np.isfinite(points).all():
            raise FormatError("an outline has corners that are no numbers")
        points = np.clip(points, 0, limit)
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        pixels = np.zeros((size[1], size[0]), np.uint8)
        # A corner at x lies in pixel floor(x).
        cv2.fillPoly(pixels, [np.minimum(np.floor(points), limit - 1).astype(np.int32)], 1)
        drawn.append(pixels)
        objects.append(
            RawObject(LABELS[outline.label], (left, top, right - left, bottom - top), float(pixels.sum()))
        )
    mask = np.zeros((size[1], size[0]), np.uint8)
    for index in sorted(range(len(objects)), key=lambda i: -(objects[i].area or 0)):
        mask[drawn[index] > 0] = index + 1
    return mask, objects
