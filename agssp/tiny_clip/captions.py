"""Captions for the training images: what KeAD knows of objects and defects, said in many ways."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import yaml

from agssp.kead import prompts
from agssp.kead.knowledge import Category, lookup, names
from agssp.tiny_clip.scenes import ANY, DEFECTS, surfaces


@functools.cache
def _words() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(
        Path(__file__).with_name("captions.yaml").read_text(encoding="utf-8")
    )
    return content


@functools.cache
def categories() -> tuple[Category, ...]:
    """Returns the categories that KeAD knows."""
    return tuple(lookup(name) for name in names())


@functools.cache
def _descriptions() -> dict[str, tuple[str, ...]]:
    """Every description of every type of defect, whatever it lies on."""
    found: dict[str, dict[str, None]] = {}
    for category in categories():
        for kind, texts in category.defects.items():
            found.setdefault(kind, {}).update(dict.fromkeys(texts))
    return {kind: tuple(texts) for kind, texts in found.items()}


def any_category(random: Random) -> Category:
    """Draws one of the categories that KeAD knows."""
    return random.choice(categories())


def _object(random: Random, surface: str) -> str:
    if surface == ANY or random.random() < 0.15:
        return random.choice(_words()["objects"])
    return lookup(surface).phrase


def _picture(random: Random, rest: str) -> str:
    return random.choice(_words()["pictures"]).format(rest)


def normal(random: Random, category: Category) -> str:
    """Says that an object is sound."""
    words = _words()
    if random.random() < 0.4:
        form = random.choice(words["sound"])
        return _picture(random, form.format(object=category.phrase, features=random.choice(category.normal)))
    return _picture(random, random.choice(words["normal"]).format(category.phrase))


def anomalous(random: Random, category: Category, kind: str | None) -> str:
    """Says that an object has a defect: one of its own types of defect, or None: in general terms."""
    if kind is not None:
        return _described(random, category.phrase, kind, random.choice(category.defects[kind]))
    return _picture(random, random.choice(_words()["anomalous"]).format(category.phrase))


@functools.cache
def _alike() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {kind: [] for kind in _descriptions()}
    for ours, theirs in _words()["looks_like"].items():
        for kind in theirs:
            found[kind].append(ours)
    return {kind: ours or [kind] for kind, ours in found.items()}


def alike(kind: str) -> list[str]:
    """Returns the training images' defects that look like a type of defect, or the type itself if none does."""
    return _alike()[kind]


def types() -> list[str]:
    """Returns everything that `alike` may return."""
    return sorted({*DEFECTS, *itertools.chain(*_alike().values())})


def of_kind(random: Random, surface: str, kind: str) -> str:
    """Says that a surface has a defect of one of `scenes.DEFECTS`."""
    name = random.choice(_words()["looks_like"][kind])
    return _described(random, _object(random, surface), name, random.choice(_descriptions()[name]))


def of_image(random: Random, surface: str, kinds: Sequence[int]) -> str:
    """Captions a training image.

    Args:
        random: Of this caption.
        surface: One of `scenes.surfaces()`.
        kinds: Indices in `scenes.DEFECTS` of what the image shows; empty: a sound surface.
    """
    if not kinds:
        category = any_category(random) if surface == ANY else lookup(surface)
        return normal(random, category)
    if random.random() < 0.15:
        return _picture(random, random.choice(_words()["anomalous"]).format(_object(random, surface)))
    if len(kinds) == 1 or random.random() < 0.3:
        return of_kind(random, surface, DEFECTS[random.choice(kinds)])
    listed = [random.choice(_words()["looks_like"][DEFECTS[kind]]).replace("_", " ") for kind in kinds]
    random.shuffle(listed)
    return _picture(random, f"{_object(random, surface)} with {' and '.join(listed)}")


def _described(random: Random, what: str, kind: str, features: str) -> str:
    form = random.choice(_words()["described"])
    return _picture(random, form.format(object=what, defect=kind.replace("_", " "), features=features))


def all_texts() -> list[str]:
    """Returns texts with every word of the captions and of KeAD's prompts, for the vocabulary."""
    words = _words()
    texts = list(itertools.chain(*(words[part] for part in ("pictures", "normal", "anomalous", "objects"))))
    texts += [kind.replace("_", " ") for kind in itertools.chain(*words["looks_like"].values())]
    texts += [form.format(object="", defect="", features="") for form in words["described"] + words["sound"]]
    texts = [text.format("") for text in texts]
    for category in categories():
        for with_descriptions in (True, False):
            made = prompts.assemble(category, descriptions=with_descriptions)
            texts += [*made.normal, *made.anomalous, *made.empty]
    return texts + list(surfaces())
