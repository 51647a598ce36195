"""Making a prepared dataset: from raw files or a generator to Arrow files and a manifest."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from datasets_builders.base import DetectionBuilder
from datasets_builders.content import dataset_fingerprint, example_digest, subset_order
from datasets_builders.errors import UserError
from datasets_builders.manifest import Manifest, Subset, describe_files, write_manifest
from datasets_builders.registry import DatasetCard
from datasets_builders.schema import SPLITS
from datasets_builders.storage import atomic_folder, content_key


def builder_class(card: DatasetCard) -> type[DetectionBuilder]:
    """Imports the builder that a card names."""
    module, _, name = card.builder.partition(":")
    return getattr(importlib.import_module(module), name)


def identity(card: DatasetCard) -> str:
    """Returns the key of everything in our hands that a prepared dataset depends on.

    A prepared dataset with another identity was made by other code or another catalogue, and is out of date.
    """
    return content_key(
        {
            "builder": card.builder,
            "version": builder_class(card).revision(card),
            "classes": card.classes,
            "masks": card.masks,
            "train_share": card.train_share,
            "subsets": dict(card.subsets),
        }
    )


def build(card: DatasetCard, raw: Path | None, folder: Path) -> Manifest:
    """Builds a dataset into `folder`, which appears whole or not at all.

    Args:
        card: Card of a dataset that is not derived.
        raw: The raw folder, where the builder needs one.
        folder: Where the Arrow files and the manifest go; what is there is replaced.

    Raises:
        UserError: The raw data is missing, broken, or not in the expected number.
    """
    with atomic_folder(folder) as target:
        source, shards = _write_rows(card, raw, target)
        manifest = _summarise(card, target, shards, source)
        _check_counts(card, manifest)
        write_manifest(target, manifest)
    return manifest


def _write_rows(
    card: DatasetCard, raw: Path | None, target: Path
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Runs the builder; returns the description of its source and the Arrow files of each split."""
    with tempfile.TemporaryDirectory(dir=target, prefix="rows-") as scratch, _quiet_datasets():
        # `datasets` keeps locks and folders of its own beside its output.
        builder = builder_class(card)(card, raw, cache_dir=Path(scratch) / "cache")
        output = Path(scratch) / "output"
        try:
            builder.download_and_prepare(output_dir=str(output))
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, UserError | OSError):
                raise error.__cause__ from error
            raise
        builder.problems.raise_if_any(card.name, str(raw))
        shards = {}
        for split in SPLITS:
            files = sorted(output.glob(f"*-{split}*.arrow"))
            shards[split] = [f"{split}-{number:05d}.arrow" for number in range(len(files))]
            for path, name in zip(files, shards[split], strict=True):
                shutil.move(path, target / name)
    return builder.source(), shards


def read_split(folder: Path, shards: list[str], info: datasets.DatasetInfo | None = None) -> datasets.Dataset:
    """Opens the Arrow files of a split, memory-mapped, without checking them."""
    parts = [datasets.Dataset.from_file(str(folder / name), info=info) for name in shards]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """Returns the dataset with images and masks as `{"bytes": ..., "path": ...}`, as stored."""
    stored = datasets.Image(decode=False)
    return dataset.cast_column("image", stored).cast_column("mask", stored)


def _summarise(
    card: DatasetCard, folder: Path, shards: dict[str, list[str]], source: dict[str, Any]
) -> Manifest:
    """Counts and fingerprints what was written, by reading it back."""
    digests: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    categories: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    masks = 0
    for split in SPLITS:
        for row in undecoded(read_split(folder, shards[split])):
            digests[split][row["image_id"]] = example_digest(split, row, card.classes)
            categories[split][row["image_id"]] = row["objects"]["category"]
            masks += row["mask"] is not None

    def per_class(train: list[str]) -> dict[str, int]:
        chosen = [categories["train"][i] for i in train] + list(categories["validation"].values())
        counts = Counter(category for found in chosen for category in found)
        return {name: counts[index] for index, name in enumerate(card.classes)}

    def fingerprint(train: list[str]) -> str:
        return dataset_fingerprint(
            card.classes, [digests["train"][i] for i in train] + list(digests["validation"].values())
        )

    order = subset_order(card.name, categories["train"])
    subsets = {}
    for config, size in card.subsets.items():
        train = sorted(order[:size])
        counts = per_class(train)
        subsets[config] = Subset(train, sum(counts.values()), counts, fingerprint(train))
    counts = per_class(order)
    return Manifest(
        name=card.name,
        identity=identity(card),
        splits={split: len(digests[split]) for split in SPLITS},
        boxes=sum(counts.values()),
        per_class=counts,
        masks=masks,
        fingerprint=fingerprint(order),
        files=describe_files(folder),
        shards=shards,
        subsets=subsets,
        source=source,
    )


def count_table(card: DatasetCard, manifest: Manifest) -> list[tuple[str, int | None, int]]:
    """Returns (what, expected, found) for images, boxes and the boxes of each class.

    Expected is None where the card states nothing.
    """
    expected = card.expected
    rows: list[tuple[str, int | None, int]] = [
        ("images", expected.images if expected else None, manifest.images),
        ("boxes", expected.boxes if expected else None, manifest.boxes),
    ]
    for name in card.classes:
        rows.append((f"  {name}", expected.per_class[name] if expected else None, manifest.per_class[name]))
    return rows


def _check_counts(card: DatasetCard, manifest: Manifest) -> None:
    wrong = [row for row in count_table(card, manifest) if row[1] not in (None, row[2])]
    if wrong:
        lines = [f"  {what.strip()}: expected {expected}, found {found}" for what, expected, found in wrong]
        raise UserError(
            f"{card.name}: the raw folder does not hold what its owner published; nothing was built.\n"
            + "\n".join(lines)
            + f"\n  Get the complete data from {card.homepage}\n"
            + f"  then: python -m datasets_builders prepare {card.name} --raw DIR"
        )


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Switches off the progress bars of `datasets`: the builders have their own."""
    before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            datasets.enable_progress_bars()
