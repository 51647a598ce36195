"""Casting Billet: 1060 pictures of hot continuous-casting slabs with boxes and pixel masks."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets_builders.base import DetectionBuilder, RawExample
from datasets_builders.components import binary_mask
from datasets_builders.content import exact_halves
from datasets_builders.images import ImageError, decode_mask
from datasets_builders.raw_formats import FormatError, read_yolo

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
MASK_FOLDERS = ("mask", "masks")
WITH, WITHOUT = "with defects", "without defects"


class CastingBillet(DetectionBuilder):
    """Reads `images`, `labels` (YOLO; no file, or an empty one, means no defect) and `mask`; halves them."""

    def read(self, raw: Path) -> Iterator[RawExample]:
        """Lists images with their label and mask files; see `DetectionBuilder.read`."""
        root = self.locate(raw, "images", "labels")
        images = self.files(root / "images", *IMAGE_SUFFIXES)
        labels = self.files(root / "labels", ".txt")
        folder = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)
        masks = self.files(folder, ".png") if folder else {}
        labels.pop("classes", None)  # the list of class names that labelling tools leave there
        for kind, others in (("label", labels), ("mask", masks)):
            for stem in sorted(others.keys() - images.keys()):
                self.problems.add(f"{kind} without image", others[stem].name)
        names = dict(enumerate(self.card.classes))
        splits = exact_halves(self.card.name, (unicodedata.normalize("NFC", stem) for stem in images))
        for stem, image in images.items():
            try:
                objects = read_yolo(labels[stem], names) if stem in labels else []
            except FormatError as error:
                self.problems.add("unreadable annotation", f"{labels[stem].name}: {error}")
                continue
            yield RawExample(
                stem,
                image,
                objects,
                masks.get(stem),
                split=splits[unicodedata.normalize("NFC", stem)],
                fractions=True,
                part=WITH if objects else WITHOUT,
            )

    def mend(self, image_id: str, example: RawExample, size: tuple[int, int]) -> RawExample:
        """Turns the mask into black and white, whichever of the two ways of drawing it has."""
        if not isinstance(example.mask, Path):
            return example
        try:
            pixels = decode_mask(example.mask.read_bytes())
        except (ImageError, OSError) as error:
            self.problems.add("unreadable mask", f"{image_id}: {error}")
            return replace(example, mask=None)
        defect = binary_mask(pixels)
        if example.objects and not defect.any():
            self.problems.add("mask without defect", image_id)
        return replace(example, mask=np.where(defect, 255, 0).astype(np.uint8))
