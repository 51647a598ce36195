"""What inspectors know of each object: its phrase, how its sound surface looks, and how each of its defects looks.

The knowledge is data, in `descriptions.yaml`; a file of the user is merged over it. Paper section 3.2.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

FALLBACK = "generic_metal"
MAX_FILE_BYTES = 2**18
_OURS = Path(__file__).with_name("descriptions.yaml")


@dataclass(frozen=True)
class Category:
    """One kind of object.

    Attributes:
        name: The name that was asked for.
        phrase: The object in words, such as `hot-rolled steel strip`.
        normal: How its surface looks where it is sound; at least one.
        defects: Type of defect -> how it looks, at least one description each.
        fallback: Whether nothing is known of this name, so that these are the words for metal in general.
    """

    name: str
    phrase: str
    normal: tuple[str, ...]
    defects: Mapping[str, tuple[str, ...]]
    fallback: bool


def _plain(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be one line of printable characters without spaces around it")
    return text


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
_Phrase = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain)]
_Text = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_plain)]
_Texts = Annotated[list[_Text], Field(min_length=1, max_length=20)]
_Described = Annotated[dict[_Name, _Texts], Field(max_length=1000)]


class _Entry(BaseModel):
    """A category as a file writes it; `like` gives what it leaves out."""

    model_config = ConfigDict(extra="forbid", strict=True)
    like: _Name | None = None
    phrase: _Phrase | None = None
    normal: _Texts | None = None
    defects: Annotated[list[_Name], Field(max_length=100)] | None = None
    described: _Described = {}


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    defects: _Described = {}
    categories: Annotated[dict[_Name, _Entry], Field(max_length=2000)] = {}


class _Loader(yaml.SafeLoader):
    """Reads plain YAML: no name twice in a mapping, and no aliases, which let a small file grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed; use `like`")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) != len(node.value):
            raise yaml.MarkedYAMLError(problem="a name appears twice", problem_mark=node.start_mark)
        return found


def lookup(category: str, extra: Path | None = None) -> Category:
    """Returns what is known of a category.

    A name that is not known itself is tried without its number (`rolled_2`) and without its configuration
    (`neu_det/mini50`).

    Args:
        category: Any name: a dataset's, a corpus category's, or one of the user's own.
        extra: The user's descriptions, merged over ours: an entry there replaces ours of that name.

    Returns:
        The category; for an unknown name, metal in general with `fallback` set.

    Raises:
        UserError: The user's file is missing, too large or not of this form.
    """
    file = _merged(extra)
    base = category.partition("/")[0]
    tried = (category, base, re.sub(r"_\d+$", "", base))
    known = next((name for name in tried if name in file.categories), None)
    phrase, normal, defects = _resolve(file, known or FALLBACK)
    return Category(category, phrase, normal, defects, fallback=known is None)


def names(extra: Path | None = None) -> list[str]:
    """Returns the names of the categories that have an entry.

    Args:
        extra: The user's descriptions, as in `lookup`.

    Raises:
        UserError: As `lookup`.
    """
    return list(_merged(extra).categories)


def fingerprint(extra: Path | None = None) -> str:
    """Returns the sha256 of everything that `lookup` may answer, for keys.

    Args:
        extra: The user's descriptions, as in `lookup`.

    Raises:
        UserError: As `lookup`.
    """
    return content_key(_merged(extra).model_dump(mode="json"))


def _merged(extra: Path | None) -> _File:
    ours = _read_ours()
    if extra is None:
        return ours
    theirs = _read(extra)
    merged = _File.model_construct(
        defects=ours.defects | theirs.defects, categories=ours.categories | theirs.categories
    )
    for name in theirs.categories:
        try:
            _resolve(merged, name)
        except UserError as error:
            raise UserError(f"{extra}: {error}") from None
    return merged


@functools.cache
def _read_ours() -> _File:
    return _read(_OURS)


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"Cannot read the descriptions {path}: {error.strerror or error}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than the limit of {MAX_FILE_BYTES // 1024} KiB for descriptions.")
    try:
        return _File.model_validate(yaml.load(content, _Loader))  # noqa: S506 - a SafeLoader
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(ascii(str(part))[1:-1][:60] for part in first["loc"])
        raise UserError(
            f"{path}: {place or 'the file'}: {first['msg']}. The form is described in docs/anomaly.md."
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as YAML: {ascii(str(error))[1:-1][:300]}.") from None


def _resolve(file: _File, name: str) -> tuple[str, tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Follows `like` and returns phrase, normal descriptions and defects of an entry, all of them there."""
    chain: list[_Entry] = []
    visited: list[str] = []
    following: str | None = name
    while following is not None:
        if following in visited or following not in file.categories:
            what = "comes back to itself" if following in visited else "names no category"
            raise UserError(f"categories.{visited[-1]}: like: {following} {what}.")
        visited.append(following)
        chain.append(file.categories[following])
        following = chain[-1].like

    def first(field: str) -> Any:
        value = next((v for entry in chain if (v := getattr(entry, field)) is not None), None)
        if value is None:
            raise UserError(f"categories.{name}: no {field}. Give it, or another category with `like`.")
        return value

    described: dict[str, list[str]] = {}
    for entry in reversed(chain):
        described |= entry.described
    listed = next((entry.defects for entry in chain if entry.defects is not None), [])
    defects = {}
    for kind in dict.fromkeys([*listed, *described]):
        texts = described.get(kind) or file.defects.get(kind)
        if texts is None:
            raise UserError(f"categories.{name}: defect {kind} has no description. Add it under `defects`.")
        defects[kind] = tuple(texts)
    if not defects:
        raise UserError(f"categories.{name}: no defects. Give them, or another category with `like`.")
    return first("phrase"), tuple(first("normal")), defects
