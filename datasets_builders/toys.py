"""The first scenes of a procedural dataset, as a dataset of its own: everything runs on it in seconds."""

from __future__ import annotations

from collections.abc import Iterator

import datasets

from datasets_builders.base import DetectionBuilder, RawExample
from datasets_builders.registry import DatasetCard
from datasets_builders.schema import SPLITS
from datasets_builders.storage import content_key
from datasets_builders.synthetic.builder import Synthetic, as_example
from datasets_builders.synthetic.scenes import render


class Toy(DetectionBuilder):
    """Renders so many scenes of each split as the catalogue says."""

    @classmethod
    def revision(cls, card: DatasetCard) -> str:
        """Returns a key over the scenes' generator, which scenes, and how many."""
        return content_key([Synthetic.revision(card), card.scenes, dict(card.splits)])

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"examples": _Scenes(self.card, split)})
            for split in SPLITS
        ]


class _Scenes:
    """The examples of a split, each rendered when it is its turn."""

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.card, self.split = card, split

    def __len__(self) -> int:
        return self.card.splits[self.split]

    def __iter__(self) -> Iterator[tuple[str, RawExample]]:
        for index in range(len(self)):
            image_id = f"{self.split}-{index:06d}"
            yield (
                image_id,
                as_example(image_id, render(self.card.scenes, index, self.split), self.card.classes),
            )
