"""CR7-DET: 4140 pictures of cold-rolled strip, 400 x 400 pixels, seven kinds of defects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets_builders.base import DetectionBuilder, RawExample
from datasets_builders.images import ImageError, decode_image
from datasets_builders.near_duplicates import near_duplicate_groups, thumbnail
from datasets_builders.raw_formats import FormatError, read_yolo

# The owner made most squares from strips of 400 x 128 by mirroring them at these two rows.
UPPER, LOWER = 136, 264
# Mean difference of grey values between a mirrored part and its original; recompression leaves less.
MAX_DIFFERENCE = 1.0


class Cr7Det(DetectionBuilder):
    """Reads `image/*.jpg` and `label/*.txt` (YOLO; no file means no defect).

    Images stay as published, mirrored parts and their boxes included. Near duplicates stay in one split; they
    are sought in what lies between the mirrors, because the mirrored parts only repeat it.
    """

    def read(self, raw: Path) -> Iterator[RawExample]:
        """Lists images with their label files; see `DetectionBuilder.read`."""
        root = self.locate(raw, "image", "label")
        images, labels = self.files(root / "image", ".jpg"), self.files(root / "label", ".txt")
        for stem in sorted(labels.keys() - images.keys()):
            self.problems.add("label without image", labels[stem].name)
        names = dict(enumerate(self.card.classes))
        groups = self._groups(images)
        for stem, image in images.items():
            try:
                objects = read_yolo(labels[stem], names) if stem in labels else []
            except FormatError as error:
                self.problems.add("unreadable annotation", f"{labels[stem].name}: {error}")
                continue
            yield RawExample(stem, image, objects, group=groups.get(stem), fractions=True)

    def _groups(self, images: dict[str, Path]) -> dict[str, str]:
        ids, thumbnails = [], []
        for stem, path in images.items():
            try:
                pixels = decode_image(path.read_bytes())
            except ImageError:
                continue  # `row` names it
            ids.append(stem)
            thumbnails.append(thumbnail(original_part(pixels)))
        return near_duplicate_groups(ids, thumbnails)


def original_part(image: np.ndarray) -> np.ndarray:
    """Returns the strip that the owner mirrored to a square, or the whole image where he did not.

    Args:
        image: uint8 (height, width, 3).
    """
    if image.shape[:2] != (400, 400):
        return image
    grey = image.mean(axis=2)
    above = np.abs(grey[:UPPER] - grey[UPPER : 2 * UPPER][::-1]).mean()
    below = np.abs(grey[LOWER:] - grey[2 * LOWER - len(grey) : LOWER][::-1]).mean()
    return image[UPPER:LOWER] if max(above, below) <= MAX_DIFFERENCE else image
