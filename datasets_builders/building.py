"""Making a prepared dataset: from raw files or a generator to Arrow files and a manifest."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import datasets

from datasets_builders.archives import TAR_SUFFIXES, ZIP_SUFFIXES, is_archive, unpacked
from datasets_builders.base import DetectionBuilder
from datasets_builders.content import dataset_fingerprint, example_digest, subset_order
from datasets_builders.errors import UserError
from datasets_builders.manifest import Manifest, Subset, describe_files, write_manifest
from datasets_builders.registry import Counts, DatasetCard
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


def build(card: DatasetCard, raw: Path | None, folder: Path, partial: bool = False) -> Manifest:
    """Builds a dataset into `folder`, which appears whole or not at all.

    Args:
        card: Card of a dataset that is not derived.
        raw: The raw folder or archive, where the builder needs one.
        folder: Where the Arrow files and the manifest go; what is there is replaced.
        partial: Accept counts that differ from the owner's; the manifest says so.

    Raises:
        UserError: The raw data is missing, broken, or not in the expected number.
    """
    with atomic_folder(folder) as target:
        with _raw_folder(raw, target) as raw_folder:
            builder, shards = _write_rows(card, raw_folder, target)
            builder.problems.raise_if_any(card.name, str(raw))
        card = builder.card  # with the classes, where the files tell them
        manifest = replace(
            summarise(card, target, shards),
            source={"raw": str(raw.resolve()) if raw else None},
            cleaning=builder.cleaning.rules,
            left_out={"images": builder.cleaning.images, "boxes": dict(builder.cleaning.boxes)},
            parts=dict(sorted(builder.parts.items())),
        )
        if not partial:
            _check_counts(card, manifest)
        manifest = replace(manifest, partial=bool(_mismatches(card, manifest)))
        write_manifest(target, manifest)
    return manifest


@contextlib.contextmanager
def _raw_folder(raw: Path | None, target: Path) -> Iterator[Path | None]:
    """Gives the raw folder; an archive is unpacked for the time of the build."""
    if raw is None or not raw.is_file():
        yield raw
        return
    if not is_archive(raw):
        kinds = ", ".join(ZIP_SUFFIXES + TAR_SUFFIXES)
        raise UserError(
            f"{raw} is neither a folder nor one of {kinds}: unpack it, and give the folder as --raw."
        )
    with unpacked(raw, target) as folder:
        yield folder


def _write_rows(
    card: DatasetCard, raw: Path | None, target: Path
) -> tuple[DetectionBuilder, dict[str, list[str]]]:
    """Runs the builder; returns it, with all that it noted, and the Arrow files of each split."""
    with tempfile.TemporaryDirectory(dir=target, prefix="rows-") as scratch, quiet_datasets():
        # `datasets` keeps locks and folders of its own beside its output.
        builder = builder_class(card)(card, raw, cache_dir=Path(scratch) / "cache")
        output = Path(scratch) / "output"
        try:
            builder.download_and_prepare(output_dir=str(output))
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, UserError | OSError):
                raise error.__cause__ from error
            raise
        shards = {}
        for split in SPLITS:
            files = sorted(output.glob(f"*-{split}*.arrow"))
            shards[split] = [f"{split}-{number:05d}.arrow" for number in range(len(files))]
            for path, name in zip(files, shards[split], strict=True):
                shutil.move(path, target / name)
    return builder, shards


def read_split(folder: Path, shards: list[str], info: datasets.DatasetInfo | None = None) -> datasets.Dataset:
    """Opens the Arrow files of a split, memory-mapped, without checking them."""
    parts = [datasets.Dataset.from_file(str(folder / name), info=info) for name in shards]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """Returns the dataset with images and masks as `{"bytes": ..., "path": ...}`, as stored."""
    stored = datasets.Image(decode=False)
    return dataset.cast_column("image", stored).cast_column("mask", stored)


def summarise(card: DatasetCard, folder: Path, shards: dict[str, list[str]]) -> Manifest:
    """Counts and fingerprints what was written, by reading it back; says nothing of where it came from."""
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
    )


class CountRow(NamedTuple):
    """One line of the comparison with the owner: published (None where nothing is said), left out, found."""

    what: str
    published: int | None
    left_out: int
    found: int

    @property
    def explained(self) -> bool:
        """Whether what was found is what was published, less what stated rules left out."""
        return self.published is None or self.published == self.found + self.left_out


def count_table(card: DatasetCard, manifest: Manifest) -> list[CountRow]:
    """Compares images, boxes, the boxes of each class and the owner's parts with what the owner published."""
    expected = card.expected or Counts(images=manifest.images + manifest.left_out["images"])
    left_out: dict[str, int] = manifest.left_out["boxes"]
    rows = [
        CountRow(
            "images", expected.images if card.expected else None, manifest.left_out["images"], manifest.images
        ),
        CountRow("boxes", expected.boxes, sum(left_out.values()), manifest.boxes),
    ]
    for name in card.classes:
        found = manifest.per_class[name]
        rows.append(CountRow(f"  {name}", expected.per_class.get(name), left_out.get(name, 0), found))
    for part in expected.parts or manifest.parts:
        rows.append(CountRow(f"images, {part}", expected.parts.get(part), 0, manifest.parts.get(part, 0)))
    return rows


def _mismatches(card: DatasetCard, manifest: Manifest) -> list[CountRow]:
    return [row for row in count_table(card, manifest) if not row.explained]


def _check_counts(card: DatasetCard, manifest: Manifest) -> None:
    lines = [
        f"  {row.what.strip()}: published {row.published}, found {row.found}"
        + (f", left out by rule {row.left_out}" if row.left_out else "")
        for row in _mismatches(card, manifest)
    ]
    if lines:
        raise UserError(
            f"{card.name}: the raw folder does not hold what its owner published; nothing was built.\n"
            + "\n".join(lines)
            + f"\n  Get the complete data from {card.homepage}\n"
            + f"  then: python -m datasets_builders prepare {card.name} --raw DIR\n"
            + "  or add --partial to use what is there; it is then marked as partial."
        )


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Switches off the progress bars of `datasets`: the builders have their own."""
    before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            datasets.enable_progress_bars()
