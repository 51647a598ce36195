"""The images that an audit looks at: a corpus, or all splits of a dataset, under one numbering of rows."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets_builders.images import decode_image

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Collection:
    """Images under one name.

    Attributes:
        name: Name of the corpus or dataset.
        fingerprint: Identity of its content; what is computed from it is kept under this.
        splits: Split names in order; a corpus has the one split `""`.
        parts: The dataset of each split, columns `image` (not decoded) and `image_id`.
    """

    name: str
    fingerprint: str
    splits: tuple[str, ...]
    parts: tuple[datasets.Dataset, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def _place(self, row: int) -> tuple[int, int]:
        ends = list(accumulate(len(part) for part in self.parts))
        part = bisect_right(ends, row)
        return part, row - (ends[part] - len(self.parts[part]))

    def split(self, row: int) -> str:
        """Returns the split of a row."""
        return self.splits[self._place(row)[0]]

    def rows_of(self, split: str) -> range:
        """Returns the rows of a split."""
        number = self.splits.index(split)
        start = sum(len(part) for part in self.parts[:number])
        return range(start, start + len(self.parts[number]))

    def image_id(self, row: int) -> str:
        """Returns the image id of a row."""
        part, index = self._place(row)
        return str(self.parts[part][index]["image_id"])

    def pixels(self, row: int) -> np.ndarray:
        """Decodes the image of a row to uint8 (height, width, 3), RGB."""
        part, index = self._place(row)
        return decode_image(self.parts[part][index]["image"]["bytes"])


def grey(pixels: np.ndarray) -> np.ndarray:
    """Returns the luminance, uint8 (height, width), of RGB pixels."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _slim(dataset: Any) -> datasets.Dataset:
    import datasets

    return dataset.select_columns(["image", "image_id"]).cast_column("image", datasets.Image(decode=False))


def open_dataset(name: str) -> Collection:
    """Opens all splits of a dataset of the catalogue.

    Raises:
        UserError: The name is unknown, or the dataset must be prepared first.
    """
    from datasets_builders import prepared
    from datasets_builders.schema import SPLITS

    parts = tuple(_slim(prepared.load(name, split)) for split in SPLITS)
    return Collection(name, prepared.fingerprint(name), SPLITS, parts)


def open_corpus(name: str) -> Collection:
    """Opens a corpus.

    Raises:
        UserError: The name is unknown, or the corpus must be prepared first.
    """
    from datasets_builders import corpus

    return Collection(name, corpus.fingerprint(name), ("",), (_slim(corpus.load_corpus(name)),))
