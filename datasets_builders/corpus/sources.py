"""The sources of a corpus: who owns them, under which licence, and how their files are laid out."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from datasets_builders.errors import UserError

SOURCES = Path(__file__).with_name("sources.yaml")
OWN_SOURCES = "sources.yaml"
MAX_OWN_BYTES = 1_000_000
# It becomes part of file names.
_OWN_NAME = re.compile(r"\w[\w .-]{0,99}")
LayoutKind = Literal["images", "class_folders", "mvtec", "mask_beside", "annotated"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Pair(_Strict):
    """A folder of images and the folder of their annotations, relative to the source's folder."""

    images: str
    annotations: str


class Layout(_Strict):
    """Which files of a source are its images; see `sources.yaml` for the kinds."""

    kind: LayoutKind
    within: list[str] = Field(default=[], alias="in")
    skip: list[str] = []
    masks: list[str] = []
    pairs: list[Pair] = []


class Source(_Strict):
    """One source, as in `sources.yaml`.

    Attributes:
        name: Key of the entry; first part of its image ids.
        expected: Images of the source, or of each of its categories; None where nobody says.
        category: Category of all images; None where `categories` maps folders to categories.
        categories_from: `name` (the paper's category names say so) or `assumed` (our choice).
        seen_in_the_wild: Whether real files in this layout were read.
    """

    name: str
    title: str
    group: Literal["public", "private", "extra", "own"]
    homepage: str
    licence: str
    obtain: str
    expected: int | dict[str, int] | None = None
    also: list[str] = []
    layout: Layout
    category: str | None = None
    categories: dict[str, str] = {}
    categories_from: Literal["name", "assumed"]
    seen_in_the_wild: bool
    layout_from: Literal["sample", "file list", "description", "not confirmed"]

    @model_validator(mode="after")
    def _one_way_to_a_category(self) -> Source:
        by_folder = self.layout.kind in ("class_folders", "mvtec")
        if by_folder != bool(self.categories) or by_folder == bool(self.category):
            raise ValueError(
                f"layout {self.layout.kind!r} takes {'`categories`' if by_folder else '`category`'} alone"
            )
        if self.layout.kind == "annotated" and not self.layout.pairs:
            raise ValueError("layout 'annotated' takes `pairs`")
        if self.layout.kind == "mask_beside" and not self.layout.masks:
            raise ValueError("layout 'mask_beside' takes `masks`")
        return self

    @property
    def expected_images(self) -> int | None:
        """Images of the whole source, where known."""
        return sum(self.expected.values()) if isinstance(self.expected, dict) else self.expected

    @property
    def expected_by_category(self) -> dict[str, int | None]:
        """Category -> images expected of it, for every category of the source, in the order of the entry."""
        names = dict.fromkeys([self.category] if self.category else self.categories.values())
        if isinstance(self.expected, dict):
            return {name: self.expected.get(name) for name in names}
        return {name: self.expected if len(names) == 1 else None for name in names}

    @property
    def folder_keys(self) -> set[str]:
        """Names that its folder or archive may have, as `folder_key` makes them."""
        return {folder_key(name) for name in (self.name, self.title, *self.also)}


def folder_key(name: str) -> str:
    """Reduces a folder name to its letters and digits in lower case: `MSD-Seg 2` and `msd_seg2` are one."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name).casefold())


def _read(entries: Mapping[str, Any]) -> dict[str, Source]:
    return {name: Source(name=name, **entry) for name, entry in entries.items()}


@functools.cache
def known_sources() -> dict[str, Source]:
    """Returns the sources of the package by name, in the order of `sources.yaml`."""
    return _read(yaml.safe_load(SOURCES.read_text(encoding="utf-8")))


def own_source(name: str, entry: Mapping[str, Any]) -> Source:
    """Returns a source that the package does not know; what its entry leaves out has defaults."""
    defaults: dict[str, Any] = {
        "title": name,
        "group": "own",
        "homepage": "not stated",
        "licence": "not stated",
        "obtain": "not stated",
        "layout": {"kind": "images"},
        "categories_from": "name",
        "seen_in_the_wild": True,
        "layout_from": "sample",
    }
    return Source(name=name, **defaults | dict(entry))


def own_sources(raw: Path) -> dict[str, Source]:
    """Reads the raw folder's own `sources.yaml`: sources that the package does not know.

    An entry needs a `category` (one of the corpus's, or a new one) or a `layout` with `categories`; all
    else has defaults: every image below the folder, licence "not stated".

    Raises:
        UserError: The file is not such YAML, or names a source that the package has or that files cannot be
            named after.
    """
    path = raw / OWN_SOURCES
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_OWN_BYTES:
            raise UserError(f"{path} is larger than {MAX_OWN_BYTES} bytes; it should hold a few entries.")
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        found = {name: own_source(name, entry) for name, entry in content.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, TypeError, AttributeError) as error:
        reason = str(error).replace("\n", "\n  ")
        raise UserError(
            f"{path} cannot be used:\n  {reason}\n"
            f"  A source needs at least: NAME: {{category: CATEGORY, licence: LICENCE}}, see docs/corpus.md"
        ) from error
    unfit = next((name for name in found if not _OWN_NAME.fullmatch(name)), None)
    if unfit is not None:
        raise UserError(
            f"{path}: {unfit[:120]!r} cannot be the name of a source: at most 100 letters, digits, spaces and . _ -"
        )
    taken = sorted(found.keys() & known_sources().keys())
    if taken:
        raise UserError(
            f"{path}: {', '.join(taken)} is a source of the package already; choose another name."
        )
    return found
