"""The images to map: the rows of a detection dataset or a corpus, at random places and with little in memory."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets_builders.errors import UserError, unknown_name
from datasets_builders.images import ImageError, decode_image, decode_mask


@dataclass(frozen=True)
class MapInput:
    """One image, decoded.

    Attributes:
        image_id: Its id.
        category: Its category.
        image: (H, W, 3) RGB uint8.
        mask: (H, W) bool, True on defects; None where the source does not ask for it.
    """

    image_id: str
    category: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class EncodedImage:
    """One image as it is stored: the file's bytes, and those of its mask where it has one."""

    image_id: str
    category: str
    image: bytes
    mask: bytes | None = None

    def decode(self, mask: NDArray[np.bool_] | None = None) -> MapInput:
        """Decodes the image.

        Args:
            mask: Goes with it.

        Raises:
            UserError: The bytes are no image.
        """
        try:
            # Copied because torch takes only arrays that can be written to; Pillow's cannot.
            return MapInput(self.image_id, self.category, decode_image(self.image).copy(), mask)
        except ImageError as error:
            raise UserError(
                f"Image {self.image_id!r} cannot be read: {error}. Prepare its dataset again."
            ) from error


class Images(Protocol):
    """A named, ordered set of images.

    Attributes:
        name: Of the dataset or corpus, in full.
        split: `train` or `validation`; corpora have only the first.
        ids: Every image's id, in order; unique.
        categories: Every image's category.
    """

    name: str
    split: str
    ids: list[str]
    categories: list[str]

    def identity(self) -> dict[str, Any]:
        """Returns name, split and fingerprint."""

    def read(self, rows: Sequence[int]) -> list[EncodedImage]:
        """Reads images by their places, which ascend; only one thread may read at a time."""

    def mask(self, image: EncodedImage) -> NDArray[np.bool_]:
        """Returns the exact mask of all its defects, of the image's size.

        Raises:
            UserError: It has none.
        """

    def labelled_normals(self) -> list[str]:
        """Returns the ids of the images that are labelled as having no defect.

        Raises:
            UserError: The images have no labels.
        """


def open_images(name: str, split: str = "train") -> Images:
    """Opens a dataset or corpus, which is prepared first if it can be.

    Args:
        name: A name of `python -m datasets_builders list`.
        split: Of a detection dataset.

    Raises:
        UserError: There is no such thing, or it must be prepared first.
    """
    from datasets_builders import registry
    from datasets_builders.corpus import is_corpus
    from datasets_builders.corpus.store import quick_manifest

    if name in registry.names():
        return _DatasetImages(name, split)
    if is_corpus(name) or quick_manifest(name) is not None:
        if split != "train":
            raise UserError(f"{name} is a corpus and has no split {split!r}. Leave out --split.")
        return _CorpusImages(name)
    from datasets_builders.corpus import names

    raise unknown_name(
        "dataset or corpus", name, [*registry.names(), *names()], "python -m datasets_builders list"
    )


class _DatasetImages:
    """The images of a detection dataset; all are of one category, which has the dataset's name."""

    def __init__(self, name: str, split: str) -> None:
        import datasets

        from datasets_builders import prepared, registry

        self.name, self.split = name, split
        self._card = registry.card(name)
        rows = prepared.load(name, split)
        plain = datasets.Image(decode=False)
        self._rows = rows.cast_column("image", plain).cast_column("mask", plain)
        self.ids = list(rows["image_id"])
        self.categories = [self._card.dataset] * len(self.ids)

    def identity(self) -> dict[str, Any]:
        from datasets_builders import prepared

        return {"name": self.name, "split": self.split, "fingerprint": prepared.fingerprint(self.name)}

    def read(self, rows: Sequence[int]) -> list[EncodedImage]:
        found = self._rows[list(rows)]
        masks = [mask and mask["bytes"] for mask in found["mask"]]
        return [
            EncodedImage(image_id, self._card.dataset, image["bytes"], mask)
            for image_id, image, mask in zip(found["image_id"], found["image"], masks, strict=True)
        ]

    def mask(self, image: EncodedImage) -> NDArray[np.bool_]:
        if image.mask is None:
            raise UserError(
                f"Image {image.image_id!r} of {self.name} has no mask, so its true map is not known.\n"
                "  Choose other maps: python -m agssp maps --help"
            )
        return decode_mask(image.mask) > 0

    def labelled_normals(self) -> list[str]:
        objects = self._rows.select_columns(["image_id", "objects"])
        return [row["image_id"] for row in objects if not row["objects"]["id"]]


class _CorpusImages:
    """The images of a corpus, read from the row groups of its Parquet shards."""

    def __init__(self, name: str) -> None:
        import pyarrow.parquet as pq

        from datasets_builders.corpus import prepared, store
        from datasets_builders.corpus.shards import corpus_features

        self.name, self.split = prepared.full_name(name), "train"
        # Prepares it where it must; what it opens lazily is not read.
        prepared.load_corpus(self.name, streaming=True)
        manifest = store.read_manifest(self.name)
        assert manifest is not None, "just opened"
        self._fingerprint = manifest.fingerprint
        label = corpus_features(manifest.categories)["category"]
        self.ids: list[str] = []
        self.categories: list[str] = []
        self._groups: list[tuple[str, int]] = []
        self._starts: list[int] = []
        self._open: tuple[str, pq.ParquetFile] | None = None
        self._held: tuple[int, list[dict[str, Any]]] | None = None
        for shard in manifest.shards:
            path = str(store.corpus_folder(self.name) / shard)
            with pq.ParquetFile(path) as parquet:
                starts = itertools.accumulate(
                    (parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)),
                    initial=len(self.ids),
                )
                self._groups += [(path, group) for group in range(parquet.num_row_groups)]
                self._starts += list(starts)[:-1]
                columns = parquet.read(columns=["image_id", "category"])
            self.ids += columns["image_id"].to_pylist()
            self.categories += label.int2str(columns["category"].to_pylist())

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "split": self.split, "fingerprint": self._fingerprint}

    def read(self, rows: Sequence[int]) -> list[EncodedImage]:
        found = []
        for row in rows:
            group = bisect.bisect_right(self._starts, row) - 1
            stored = self._group(group)[row - self._starts[group]]
            found.append(EncodedImage(stored["image_id"], self.categories[row], stored["image"]["bytes"]))
        return found

    def _group(self, group: int) -> list[dict[str, Any]]:
        """Reads a row group, of at most 64 images; the last one is kept."""
        import pyarrow.parquet as pq

        if self._held is None or self._held[0] != group:
            path, place = self._groups[group]
            if self._open is None or self._open[0] != path:
                if self._open is not None:
                    self._open[1].close()
                self._open = path, pq.ParquetFile(path)
            self._held = None  # not two at a time
            self._held = group, self._open[1].read_row_group(place, columns=["image", "image_id"]).to_pylist()
        return self._held[1]

    def mask(self, image: EncodedImage) -> NDArray[np.bool_]:
        from datasets_builders.corpus import synthetic

        found = synthetic.defect_mask(image.image_id)
        if found is None:
            raise UserError(
                f"Image {image.image_id!r} of {self.name} has no mask: only procedural images know their true map.\n"
                "  Choose other maps: python -m agssp maps --help"
            )
        return found

    def labelled_normals(self) -> list[str]:
        raise UserError(
            f"{self.name} is a corpus: its images have no labels. Choose --normals auto or give a file of image ids."
        )
