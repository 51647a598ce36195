"""Procedural scenes as a detection dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np

from datasets_builders.base import DetectionBuilder, RawExample, RawObject
from datasets_builders.images import encode_png
from datasets_builders.registry import DatasetCard
from datasets_builders.schema import SPLITS
from datasets_builders.storage import content_key, file_sha256
from datasets_builders.synthetic.scenes import Scene, load_config, render


class Synthetic(DetectionBuilder):
    """Renders the images of a procedural dataset; boxes and areas come from the exact masks."""

    @classmethod
    def revision(cls, card: DatasetCard) -> str:
        """Returns a key over the generator's code and configs: no dataset outlives the code that made it."""
        folder = Path(__file__).parent
        files = sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")])
        return content_key([[path.relative_to(folder).as_posix(), file_sha256(path)] for path in files])

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        counts = load_config(self.card.name)["splits"]
        return [
            datasets.SplitGenerator(
                name=split, gen_kwargs={"examples": _Scenes(self.card, split, counts[split])}
            )
            for split in SPLITS
        ]


class _Scenes:
    """The examples of a split, each rendered when it is its turn."""

    def __init__(self, card: DatasetCard, split: str, count: int) -> None:
        self.card, self.split, self.count = card, split, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[str, RawExample]]:
        for index in range(self.count):
            image_id = f"{self.split}-{index:06d}"
            yield image_id, as_example(image_id, render(self.card.name, index, self.split), self.card.classes)


def as_example(image_id: str, scene: Scene, classes: tuple[str, ...]) -> RawExample:
    """Turns a scene into an example: tight boxes, and one mask with value k for the k-th object.

    Where defects overlap, the mask shows the later one; areas count the whole masks.
    """
    objects = []
    combined = np.zeros(scene.image.shape[:2], np.uint8)
    for number, (mask, category) in enumerate(zip(scene.masks, scene.categories, strict=True), start=1):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        box = left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top
        objects.append(RawObject(classes[category], box, area=float(np.count_nonzero(mask))))
        combined[mask > 0] = number
    return RawExample(image_id, encode_png(scene.image), objects, mask=combined)
