"""Writing a prepared dataset as it is published: Parquet shards, a sample picture, a card, a manifest."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np

from datasets_builders import prepared
from datasets_builders.building import quiet_datasets
from datasets_builders.contact_sheet import contact_sheet
from datasets_builders.hub_card import DEFAULT_CONFIG, SAMPLE, SAMPLE_IMAGES, page
from datasets_builders.manifest import DamagedError, Manifest, check_content, read_manifest, write_manifest
from datasets_builders.registry import DatasetCard
from datasets_builders.schema import SPLITS
from datasets_builders.storage import atomic_folder, file_sha256

logger = logging.getLogger(__name__)

# A push or download that is killed loses at most the shard it was at.
SHARD_BYTES = 100_000_000
README = "README.md"


def export(card: DatasetCard, built: Manifest, repo: str, folder: Path) -> None:
    """Writes everything that is published into `folder`, which appears whole; what is there is used if it fits."""
    try:
        found = read_manifest(folder)
        if found and (found.identity, found.fingerprint) == (built.identity, built.fingerprint):
            check_content(folder, found)
            return
    except (DamagedError, OSError) as error:
        logger.warning("Exporting %s again: %s", card.name, error)
    with atomic_folder(folder) as target, quiet_datasets():
        infos, shards, counts = {}, {}, {}
        for config in (DEFAULT_CONFIG, *built.subsets):
            loaded = card.name if config == DEFAULT_CONFIG else f"{card.name}/{config}"
            splits = {split: prepared.load(loaded, split) for split in SPLITS}
            infos[config], files = _write_config(config, splits, target)
            if config == DEFAULT_CONFIG:
                shards = files
                counts = {
                    split: Counter(c for objects in rows["objects"] for c in objects["category"])
                    for split, rows in splits.items()
                }
                sheet = contact_sheet(splits["train"], card, "train", SAMPLE_IMAGES, np.random.default_rng(0))
                sheet.save(target / SAMPLE, format="PNG")
        (target / README).write_text(page(card, built, repo, infos, counts), encoding="utf-8")
        described = {
            path.relative_to(target).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(target.rglob("*"))
            if path.is_file()
        }
        # Paths on this machine are nobody's business.
        write_manifest(target, replace(built, files=described, shards=shards, source={}))


def _write_config(
    config: str, splits: dict[str, datasets.Dataset], target: Path
) -> tuple[datasets.DatasetInfo, dict[str, list[str]]]:
    """Writes a config's Parquet files; returns its description and the files of each split."""
    (target / config).mkdir()
    written, files = {}, {}
    for split, rows in splits.items():
        size = len(rows) and rows.data.nbytes * len(rows) / rows.data.num_rows
        shards = min(max(1, math.ceil(size / SHARD_BYTES)), max(1, len(rows)))
        files[split] = [f"{config}/{split}-{n:05d}-of-{shards:05d}.parquet" for n in range(shards)]
        num_bytes = sum(
            rows.shard(shards, number, contiguous=True).to_parquet(target / path)
            for number, path in enumerate(files[split])
        )
        written[split] = datasets.SplitInfo(split, num_bytes=num_bytes, num_examples=len(rows))
    sizes = [(target / path).stat().st_size for paths in files.values() for path in paths]
    info = datasets.DatasetInfo(
        features=next(iter(splits.values())).features,
        splits=datasets.splits.SplitDict(written),
        download_size=sum(sizes),
        dataset_size=sum(split.num_bytes for split in written.values()),
        config_name=config,
    )
    return info, files
