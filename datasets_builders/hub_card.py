"""The page that a dataset has on the Hub: metadata for machines, and what a person must know to use it."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import datasets
import yaml
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from datasets_builders.errors import counted
from datasets_builders.manifest import Manifest
from datasets_builders.registry import DatasetCard
from datasets_builders.schema import SPLITS

LICENCES = Path(__file__).with_name("licences.yaml")
TEMPLATE = Path(__file__).with_name("hub_card.md")
SAMPLE = "sample.png"
SAMPLE_IMAGES = 15
DEFAULT_CONFIG = "default"
NOT_STATED = "not stated"
MASKS = {
    "none": "There are no masks: `mask` is empty.",
    "binary": "`mask` is an 8-bit PNG of the image's size, 255 where there is a defect, or empty.",
    "instance": "`mask` is an 8-bit PNG of the image's size, value k on the k-th object, or empty.",
}
# Upper bounds of the Hub's size categories.
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def hub_licence(licence: str) -> str | None:
    """Returns the Hub's name of a licence that allows publishing again, else None.

    Args:
        licence: The licence as the catalogue states it.
    """
    return _known_licences().get(_plain(licence))


@functools.cache
def _known_licences() -> dict[str, str]:
    listed: dict[str, str] = yaml.safe_load(LICENCES.read_text(encoding="utf-8"))
    return {_plain(name): identifier for name, identifier in listed.items()}


def _plain(licence: str) -> str:
    return re.sub(r"[\s_-]+", " ", licence).strip().lower()


def page(
    card: DatasetCard,
    manifest: Manifest,
    repo: str,
    infos: Mapping[str, datasets.DatasetInfo],
    per_class: Mapping[str, Counter[int]],
) -> str:
    """Writes the README.md of a dataset's repository.

    Args:
        card: Card of a dataset that is not derived.
        manifest: Manifest of the build that is published.
        repo: Name of the repository.
        infos: Features, splits and sizes of each config.
        per_class: Split -> number of boxes of each class index.
    """
    metadata = yaml.safe_dump(
        _metadata(card, manifest, infos), sort_keys=False, allow_unicode=True, width=1000
    )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=metadata.rstrip(),
        title=card.title,
        images=f"{manifest.images:,}",
        boxes=f"{manifest.boxes:,}",
        classes=counted(len(card.classes), "class", "classes"),
        homepage=card.homepage,
        name=card.name,
        repo=repo,
        sample=SAMPLE,
        configs=_configs(manifest, infos),
        class_table=_class_table(card, per_class),
        masks=MASKS[card.masks],
        faults=_faults(manifest),
        licence=_licence_text(card),
        citation=card.citation,
        fingerprint=manifest.fingerprint,
    )


def _metadata(
    card: DatasetCard, manifest: Manifest, infos: Mapping[str, datasets.DatasetInfo]
) -> dict[str, Any]:
    licence = hub_licence(card.licence)
    described = DatasetCardData()
    DatasetInfosDict(infos).to_dataset_card_data(described)
    return {
        "pretty_name": card.title,
        "license": licence or ("unknown" if card.licence == NOT_STATED else "other"),
        **({} if licence or card.licence == NOT_STATED else {"license_name": card.licence}),
        "task_categories": ["object-detection"],
        "tags": ["surface-defects", "industrial-inspection", "agssp-bench"],
        "size_categories": [size_category(manifest.images)],
        "configs": [
            {
                "config_name": config,
                **({"default": True} if config == DEFAULT_CONFIG else {}),
                "data_files": [{"split": split, "path": f"{config}/{split}-*.parquet"} for split in SPLITS],
            }
            for config in infos
        ],
        "dataset_info": described.to_dict()["dataset_info"],
        "citation": card.citation,
    }


def size_category(images: int) -> str:
    """Returns the Hub's name for a number of images."""
    return next((label for limit, label in SIZES if images < limit), "n>1M")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _configs(manifest: Manifest, infos: Mapping[str, datasets.DatasetInfo]) -> str:
    rows = []
    for config, info in infos.items():
        subset = manifest.subsets.get(config)
        counts = [f"{info.splits[split].num_examples:,}" for split in SPLITS]
        boxes = subset.boxes if subset else manifest.boxes
        fingerprint = subset.fingerprint if subset else manifest.fingerprint
        rows.append([f"`{config}`", *counts, f"{boxes:,}", f"`{fingerprint}`"])
    return table(["config", *SPLITS, "boxes", "fingerprint"], rows)


def _class_table(card: DatasetCard, per_class: Mapping[str, Counter[int]]) -> str:
    rows = []
    for index, name in enumerate(card.classes):
        counts = [per_class[split][index] for split in SPLITS]
        rows.append([str(index), f"`{name}`", *(f"{count:,}" for count in counts), f"{sum(counts):,}"])
    return table(["index", "class", *(f"boxes in {split}" for split in SPLITS), "boxes"], rows)


def _faults(manifest: Manifest) -> str:
    lines = [
        f"- {rule}: {applied['count']} (such as {', '.join(f'`{name}`' for name in applied['examples'][:3])})"
        for rule, applied in manifest.cleaning.items()
    ]
    left_out = manifest.left_out
    boxes = sum(left_out["boxes"].values())
    if left_out["images"] or boxes:
        lines.append(f"- left out by these rules: {left_out['images']} images and {boxes} boxes")
    if not lines:
        return "None were found by the checks: every image decodes, every box lies inside its image."
    return "What was wrong with the files of the owner, and how often it was put right:\n\n" + "\n".join(
        lines
    )


def _licence_text(card: DatasetCard) -> str:
    if hub_licence(card.licence):
        return f"{card.licence}, as stated by its owner ({card.homepage})."
    stated = "states no licence" if card.licence == NOT_STATED else f"states: {card.licence}"
    return (
        f"Its owner {stated} ({card.homepage}). Whoever published this copy declared to have the rights to do so; "
        "that gives you none. Ask the owner before you use it for more than looking."
    )
