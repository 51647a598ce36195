"""Pseudo boxes with their images as files for other tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp.box_dataset import CLASSES
from datasets_builders import exports, prepared, registry
from datasets_builders.corpus import fingerprint as corpus_fingerprint
from datasets_builders.corpus import load_corpus, store
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    import datasets

    from agssp.box_store import BoxStore


def mapped_images(origin: dict[str, Any]) -> tuple[str, str]:
    """Returns name and split of the dataset or corpus that maps were made of, after a look at its state.

    Args:
        origin: The identity of the maps.

    Raises:
        UserError: The dataset has changed since, or cannot be opened.
    """
    made_of = origin["request"]["dataset"]
    name, split = made_of["name"], made_of["split"]
    now = prepared.fingerprint(name) if name in registry.names() else corpus_fingerprint(name)
    if now != made_of["fingerprint"]:
        raise UserError(f"{name} has changed since its maps were made: make the maps and boxes again.")
    return name, split


def export(boxes: BoxStore, style: str, out: Path) -> exports.Exported:
    """Writes boxes with their images as `datasets_builders export` writes a dataset's own boxes.

    Args:
        boxes: The boxes.
        style: `coco` (annotations have a `score`) or `yolo`.
        out: A folder that does not exist yet.

    Raises:
        UserError: The images are not those of the maps, or the folder exists or cannot be made.
    """
    name, split = mapped_images(boxes.origin)
    images: datasets.Dataset
    if name in registry.names():
        images, card = prepared.load(name, split), registry.card(name)
    else:
        images, card = load_corpus(name), _corpus_card(name)
    card = replace(card, classes=CLASSES, masks="none", title=f"Pseudo boxes on {card.title}")
    return exports.write_export(
        card, {split: boxes.as_detection_dataset(images)}, style, out, boxes.fingerprint
    )


def _corpus_card(name: str) -> registry.DatasetCard:
    """Describes a corpus as a dataset; its licences are those of its sources."""
    manifest = store.read_manifest(name)
    assert manifest is not None, "just opened"
    sources = [source for source in manifest.sources if source["found"]]
    return registry.DatasetCard(
        name=name,
        title=f"{name}, {manifest.images} images",
        classes=(),
        masks="none",
        origin="raw",
        licence="; ".join(f"{source['name']}: {source['licence']}" for source in sources),
        homepage="",
        citation="",
        builder="",
    )
