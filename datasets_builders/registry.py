"""Which datasets exist: the catalogue, as typed cards."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from datasets_builders import storage
from datasets_builders.errors import UserError, unknown_name
from datasets_builders.manifest import DamagedError, read_manifest

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
SYNTHETIC_CONFIGS = Path(__file__).parent / "synthetic" / "configs"
LIST_COMMAND = "python -m datasets_builders list"
OWN_PREFIX = "own_"
_OWN_NAME = re.compile(r"own_[a-z0-9][a-z0-9_]{0,39}")
_OWN_LAYOUT = """\
images (jpg, png, bmp, tif, webp) in any folders, and the labels of some of them, of one kind:
VOC (NAME.xml), YOLO (NAME.txt, and data.yaml or classes.txt) or COCO (one .json or more); see docs/datasets.md"""


@dataclass(frozen=True)
class Counts:
    """What the owner says that the whole dataset holds (all splits); None or empty where nothing is said.

    Attributes:
        images: Number of images.
        boxes: Number of boxes.
        per_class: Number of boxes of each class.
        parts: Number of images of each part, such as a class folder or a split of the owner.
    """

    images: int
    boxes: int | None = None
    per_class: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HubSource:
    """A dataset repository on the Hub at a revision: a commit hash, tag or branch."""

    repo: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Reads `ORG/NAME@REVISION`, as given with `--hub`.

        Raises:
            UserError: It does not say which revision.
        """
        repo, _, revision = text.partition("@")
        if not repo or not revision:
            raise UserError(
                f"--hub {text} does not say which revision, and a copy on the Hub can change.\n"
                "  Write ORG/NAME@REVISION, with a commit hash or a tag."
            )
        return cls(repo, revision)


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a dataset before it is prepared.

    Attributes:
        name: `name`, or `name/config` for a derived one.
        title: One line for people.
        classes: Class names; a category's index is its place here.
        masks: `"none"`, `"binary"` (255 = defect) or `"instance"` (value k = k-th object of the image).
        origin: `"raw"`, `"procedural"`, `"derived"`, or `"own"`: a user's images, no part of the benchmark.
        licence: The licence as its owner states it, or `"not stated"`.
        homepage: Where its owner publishes it.
        citation: How the owner wishes to be cited.
        builder: `"package.module:Class"` of the `DetectionBuilder`.
        layout: The raw folder that the builder reads, in words; empty for procedural sets.
        train_share: Share of images that `hash_split` puts into `train`; unused where the owner has a split.
        expected: Counts that a build must meet, where known.
        subsets: Derived configs: name -> number of training images.
        parent: Name of the dataset that a derived one is taken from, else None.
        splits: Images in each split, where fixed before the build.
        scenes: Name of the procedural config whose scenes it shows; empty for other sets.
        toy: Whether it is a handful of images, for trying things; numbers on it mean nothing.
        seen: Whether the builder was tested on files of the owner; if not, on files made from a description.
        hub: The published copy to fetch where there are no raw files, at a commit; None where there is none.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    masks: str
    origin: str
    licence: str
    homepage: str
    citation: str
    builder: str
    layout: str = ""
    train_share: float = 0.5
    expected: Counts | None = None
    subsets: Mapping[str, int] = field(default_factory=dict)
    parent: str | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    scenes: str = ""
    toy: bool = False
    seen: bool = True
    hub: HubSource | None = None

    @property
    def dataset(self) -> str:
        """Name without config: what is prepared on disk."""
        return self.parent or self.name

    @property
    def config(self) -> str | None:
        """Config of a derived dataset, else None."""
        return self.name.partition("/")[2] or None


def _read_card(name: str, entry: dict[str, Any]) -> DatasetCard:
    entry = dict(entry)
    if entry["origin"] == "procedural":
        entry.setdefault("scenes", name)
        config = yaml.safe_load((SYNTHETIC_CONFIGS / f"{entry['scenes']}.yaml").read_text(encoding="utf-8"))
        entry = {key: config[key] for key in ("title", "classes", "splits")} | entry
    if "expected" in entry:
        entry["expected"] = Counts(**entry["expected"])
    if "hub" in entry:
        entry["hub"] = HubSource(**entry["hub"])
    return DatasetCard(name=name, **entry | {"classes": tuple(entry["classes"])})


@functools.cache
def _catalogue() -> dict[str, DatasetCard]:
    found = {}
    for name, entry in yaml.safe_load(CATALOGUE.read_text(encoding="utf-8")).items():
        base = found[name] = _read_card(name, entry)
        for config, images in base.subsets.items():
            derived = f"{name}/{config}"
            found[derived] = replace(
                base,
                name=derived,
                title=f"{base.title}: {images} training images",
                origin="derived",
                expected=None,
                subsets={},
                parent=name,
            )
    return found


def cards() -> dict[str, DatasetCard]:
    """Returns the card of every dataset and derived config by name: the catalogue's, then own sets of this machine."""
    return _catalogue() | _own_cards()


def is_own(name: str) -> bool:
    """Tells whether a name is that of a user's own images; no public dataset has such a name."""
    return name.startswith(OWN_PREFIX)


def own_card(name: str, classes: tuple[str, ...] = ()) -> DatasetCard:
    """Returns the card of a user's own images; its classes are known once they are read.

    Raises:
        UserError: The name cannot be that of a folder, a record and a page at once.
    """
    if not _OWN_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be the name of images of your own:"
            f" {OWN_PREFIX} and at most 40 small letters, digits and _."
        )
    return DatasetCard(
        name=name,
        title=f"{name.removeprefix(OWN_PREFIX)}, images of one's own",
        classes=classes,
        masks="none",
        origin="own",
        licence="own",
        homepage="a folder of your own",
        citation="own images",
        builder="datasets_builders.own:OwnFolder",
        layout=_OWN_LAYOUT,
        train_share=0.7,
    )


def _own_cards() -> dict[str, DatasetCard]:
    found = {}
    for folder in sorted((storage.home() / "datasets").glob(f"{OWN_PREFIX}*")):
        with contextlib.suppress(DamagedError):
            manifest = read_manifest(folder)
            if manifest is not None and _OWN_NAME.fullmatch(folder.name):
                found[folder.name] = own_card(folder.name, tuple(manifest.per_class))
    return found


def names() -> list[str]:
    """Returns the names that `load` takes."""
    return list(cards())


def card(name: str) -> DatasetCard:
    """Returns the card of a dataset.

    Raises:
        UserError: There is no dataset of that name.
    """
    known = cards()
    if name not in known and is_own(name):
        own_card(name)  # refuses a name that cannot be
        raise UserError(
            f"{name} is not ready on this machine; it is built from a folder of your own images.\n"
            f"  then: python -m datasets_builders prepare {name} --raw DIR"
        )
    if name not in known:
        raise unknown_name("dataset", name, known, LIST_COMMAND)
    return known[name]
