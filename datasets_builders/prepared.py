"""Prepared datasets on this machine: find them, check them, repair them, open them."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_builders import registry, storage
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.manifest import DamagedError, Manifest, check_content, check_sizes, read_manifest

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# Folder -> signature of its files when their content was last checked by this process.
_checked: dict[Path, object] = {}


@dataclass(frozen=True)
class Prepared:
    """A dataset on this machine.

    Attributes:
        name: Name, with config for a derived one.
        folder: Folder with the Arrow files and the manifest.
        manifest: Manifest of the whole dataset.
        built: Whether this call built it, rather than finding it.
    """

    name: str
    folder: Path
    manifest: Manifest
    built: bool = False


def dataset_folder(card: registry.DatasetCard) -> Path:
    """Returns where a dataset is, or will be, on this machine."""
    return storage.home() / "datasets" / card.dataset


def is_ready(name: str) -> bool:
    """Tells whether a dataset is prepared, from its manifest and the sizes of its files.

    Cheap: imports neither `datasets` nor the builder, reads no image; whether the dataset is out of date or
    its content damaged shows when it is loaded.

    Raises:
        UserError: There is no dataset of that name.
    """
    card = registry.card(name)
    return quick_manifest(card) is not None


def quick_manifest(card: registry.DatasetCard) -> Manifest | None:
    """Returns the manifest of a dataset that looks ready, else None; see `is_ready`."""
    folder = dataset_folder(card)
    try:
        manifest = read_manifest(folder)
        if manifest is None or (card.config and card.config not in manifest.subsets):
            return None
        check_sizes(folder, manifest)
    except DamagedError:
        return None
    return manifest


def prepare(
    name: str,
    raw: Path | None = None,
    force: bool = False,
    partial: bool = False,
    hub: str | None = None,
) -> Prepared:
    """Builds a dataset on this machine, or fetches it from the Hub, unless it is there already.

    It is built where raw files are given, known from an earlier build, or not needed; else it is fetched where the
    catalogue pins a copy on the Hub.

    Several processes may ask for the same dataset at once: one builds, the others wait for it.

    Args:
        name: Name of a dataset. A derived one stands for the dataset that it is taken from.
        raw: Folder, zip or tar file with the owner's files; not needed for procedural datasets, nor to repair
            a dataset whose raw files still exist.
        force: Build even if it is there.
        partial: Accept raw files in other numbers than the owner published; the dataset is marked for it.
        hub: `ORG/NAME@REVISION` of a published copy to fetch instead of building.

    Returns:
        The prepared dataset, its files checked.

    Raises:
        UserError: The name is unknown, the raw data is missing or wrong, the Hub cannot be reached, or the cache
            cannot be written.
    """
    card = _card_to_prepare(name, raw)
    owner = registry.card(card.dataset) if card.origin == "derived" else card
    if raw is not None and hub is not None:
        raise UserError("--raw and --hub are two sources of one dataset: give one of them.")
    source = registry.HubSource.parse(hub) if hub is not None else None
    raw = raw.expanduser().resolve() if raw is not None else None
    if raw is not None and owner.origin == "procedural":
        raise UserError(f"{owner.name} is generated, not read from files: leave out --raw.")
    # People add images and correct labels, and a build takes seconds.
    force = force or (owner.origin == "own" and raw is not None)
    folder = dataset_folder(card)
    if not force:
        found = _sound(owner, folder)
        if found and _same_source(owner, found, raw, partial, source):
            return Prepared(name, folder, found)
    with _locked(folder):
        # Another process may have built it while this one waited.
        found = None if force else _sound(owner, folder, say=True)
        if found and _same_source(owner, found, raw, partial, source):
            return Prepared(name, folder, found)
        if raw is None and source is None:
            raw, partial, source = _recorded_source(owner, folder, partial)
        if source is not None:
            from datasets_builders import hub_fetch

            manifest = hub_fetch.fetch(owner, source, folder)
        else:
            from datasets_builders import building

            manifest = building.build(owner, raw, folder, partial)
    logger.info("%s is ready in %s", owner.name, folder)
    return Prepared(name, folder, manifest, built=True)


def load(name: str, split: str) -> datasets.Dataset:
    """Returns one split of a dataset, memory-mapped.

    Its files are checked against the manifest, once in each process while they do not change. Damaged or
    out-of-date datasets are said so in a warning and built again: procedural ones at once, others from the
    raw folder that they came from. Procedural datasets are built on first use.

    Args:
        name: Name of a dataset, such as `neu_det` or `neu_det/mini50`.
        split: `train` or `validation`.

    Returns:
        A dataset with `detection_features`, rows sorted by image id.

    Raises:
        UserError: The name or split is unknown, or the dataset must be prepared first.
    """
    prepared = prepare(name)
    manifest = prepared.manifest
    if split not in manifest.splits:
        raise unknown_name("split", split, manifest.splits, f"python -m datasets_builders show {name}")
    card = registry.card(name)
    import datasets

    from datasets_builders.building import read_split

    info = datasets.DatasetInfo(
        description=card.title, citation=card.citation, homepage=card.homepage, license=card.licence
    )
    dataset = read_split(prepared.folder, manifest.shards[split], info)
    if card.config and split == "train":
        chosen = set(manifest.subsets[card.config].train)
        dataset = dataset.select(
            [row for row, image_id in enumerate(dataset["image_id"]) if image_id in chosen]
        )
    return dataset


def fingerprint(name: str) -> str:
    """Returns the sha256 of a dataset's content: images, ids, splits, classes and boxes.

    The same on every machine and after a round trip through Parquet. Builds the dataset if `load` would.
    """
    card = registry.card(name)
    manifest = prepare(name).manifest
    return manifest.subsets[card.config].fingerprint if card.config else manifest.fingerprint


def _card_to_prepare(name: str, raw: Path | None) -> registry.DatasetCard:
    """Returns the card of a dataset; own images have one as soon as there is a folder to read them from."""
    if registry.is_own(name) and raw is not None:
        return registry.own_card(name)
    return registry.card(name)


def _sound(card: registry.DatasetCard, folder: Path, say: bool = False) -> Manifest | None:
    """Returns the manifest of a dataset that is whole and up to date, else None; `say` warns why not."""
    from datasets_builders.building import identity

    try:
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        signature = check_sizes(folder, manifest)
        if _checked.get(folder) != (manifest.fingerprint, signature):
            check_content(folder, manifest)
            _checked[folder] = (manifest.fingerprint, signature)
    except DamagedError as error:
        if say:
            logger.warning("%s is damaged and must be built again: %s", card.name, error)
        return None
    if manifest.identity != identity(card):
        if say:
            logger.warning("%s was built by another version and must be built again", card.name)
        return None
    return manifest


def _same_source(
    card: registry.DatasetCard,
    manifest: Manifest,
    raw: Path | None,
    partial: bool,
    source: registry.HubSource | None,
) -> bool:
    if source is not None:
        from datasets_builders import hub_fetch

        return hub_fetch.is_from(manifest, card, source)
    return raw is None or (manifest.source.get("raw") == str(raw) and (partial or not manifest.partial))


def _recorded_source(
    card: registry.DatasetCard, folder: Path, partial: bool
) -> tuple[Path | None, bool, registry.HubSource | None]:
    """Returns what to make a dataset from: raw files, whether they may be partial, a copy on the Hub.

    These are where the present one came from, if that still exists, else the copy that the catalogue pins.
    """
    if card.origin == "procedural":
        return None, partial, None
    with contextlib.suppress(DamagedError):
        manifest = read_manifest(folder)
        if manifest and manifest.source.get("raw"):
            raw = Path(manifest.source["raw"])
            if raw.exists():
                logger.warning("Building %s from %s", card.name, raw)
                return raw, partial or manifest.partial, None
        if manifest and manifest.source.get("hub"):
            fetched = manifest.source["hub"]
            return None, partial, registry.HubSource(fetched["repo"], fetched["commit"])
    if card.hub is not None:
        return None, partial, card.hub
    raise UserError(
        f"{card.name} must be built again, and the folder of its images is gone.\n"
        f"  Bring it back: python -m datasets_builders prepare {card.name} --raw DIR"
        if card.origin == "own"
        else f"{card.name} is not ready on this machine; it is built from files of its owner.\n"
        f"  Get them from {card.homepage}\n"
        f"  then: python -m datasets_builders prepare {card.name} --raw DIR"
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the dataset's lock, and clears what killed builds left behind.

    Raises:
        UserError: The cache folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            acquired = lock.acquire(blocking=False)
        except Timeout:
            logger.warning("Waiting for another process that prepares %s", folder.name)
            acquired = lock.acquire()
        with acquired:
            for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
                shutil.rmtree(leftover)
            yield
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder.parent}: {error.strerror or error}.\n"
            f"  Set {storage.HOME_VARIABLE} to a folder with room that you can write to."
        ) from error
