"""Procedural corpora: any number of images of K kinds of metal, a share of them with defects.

Image i depends on (K, seed, i) alone: a corpus of more images begins with the images of a smaller one, and
any number of processes makes the same files.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets_builders.corpus import catalogue
from datasets_builders.corpus.files import Skipped
from datasets_builders.corpus.shards import VERSION, Row
from datasets_builders.errors import UserError
from datasets_builders.images import encode_png
from datasets_builders.storage import content_key, file_sha256
from datasets_builders.synthetic.defects import KINDS
from datasets_builders.synthetic.marks import Site
from datasets_builders.synthetic.numerics import Source
from datasets_builders.synthetic.scenes import config_names, load_config, surface_recipes
from datasets_builders.synthetic.surfaces import Surface, photograph, render_surface

NAME = "corpus_synthetic"
LICENCE = "Apache-2.0"
SHARD_IMAGES = 500
MAX_CATEGORIES = 1000
TRIES = 24
"""How often a defect that finds no room is drawn again before it is given up."""


@dataclass(frozen=True)
class Parameters:
    """What a procedural corpus is made from: numbers of images and categories, and the seed."""

    images: int
    categories: int
    seed: int

    def __post_init__(self) -> None:
        for what, low, high in (("images", 1, 10**8), ("categories", 1, MAX_CATEGORIES), ("seed", 0, 2**63)):
            value = getattr(self, what)
            if not low <= value <= high:
                raise UserError(f"{NAME}: {what} = {value} is not in {low}..{high}. Give another --{what}.")

    @property
    def name(self) -> str:
        """Name of the corpus with these parameters."""
        return f"{NAME}/n{self.images}_k{self.categories}_s{self.seed}"


def parameters(
    name: str, images: int | None = None, categories: int | None = None, seed: int | None = None
) -> Parameters:
    """Returns the parameters that a name stands for; `corpus_synthetic` alone has those of the catalogue.

    Args:
        name: `corpus_synthetic` or `corpus_synthetic/nN_kK_sS`.
        images: Replaces the catalogue's number of images.
        categories: Replaces the catalogue's number of categories.
        seed: Replaces the catalogue's seed.

    Raises:
        UserError: The name is not of this form, or a number is out of range.
    """
    if name == NAME:
        values: dict[str, int] = dict(_settings()["defaults"])
        given = {"images": images, "categories": categories, "seed": seed}
        return Parameters(**values | {key: value for key, value in given.items() if value is not None})
    match = re.fullmatch(rf"{NAME}/n(\d{{1,9}})_k(\d{{1,4}})_s(\d{{1,19}})", name, re.ASCII)
    if not match:
        raise UserError(
            f"Unknown corpus {name!r}. A procedural one is named like {NAME}/n2000_k9_s0.\n"
            f"  Make it with: python -m datasets_builders prepare {NAME} --images N --categories K --seed S"
        )
    found = Parameters(*(int(number) for number in match.groups()))
    if found.name != name:
        raise UserError(f"Unknown corpus {name!r}. Did you mean {found.name!r}?")
    return found


def _settings() -> dict[str, Any]:
    return catalogue.entries()[NAME]["synthetic"]


@functools.cache
def category_recipes(count: int) -> dict[str, dict[str, Any]]:
    """Returns one surface recipe for each of `count` categories, by category name.

    With at most as many categories as recipes they are the recipes themselves. With more, each category is
    a production line of its own: a recipe whose ranges are narrowed to half their length, at a place that the
    line's name fixes; so `rolled_2` looks the same in every corpus.
    """
    recipes = surface_recipes()
    if count <= len(recipes):
        return dict(list(recipes.items())[:count])
    lines = {}
    for index in range(count):
        recipe = list(recipes)[index % len(recipes)]
        name = f"{recipe}_{index // len(recipes) + 1}"
        lines[name] = _narrowed(recipes[recipe], Source("line", name))
    return lines


def _narrowed(value: Any, source: Source) -> Any:
    """Halves every range `[low, high]` of a recipe, at a random place; whole numbers stay whole."""
    if isinstance(value, Mapping):
        return {key: _narrowed(item, source) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) != 2 or not all(isinstance(item, (int, float)) for item in value):
        return [_narrowed(item, source) for item in value]
    low, high = value
    start = source.uniform(low, low + (high - low) / 2)
    narrowed = [start, start + (high - low) / 2]
    whole = all(isinstance(item, int) for item in value)
    return [round(item) if whole else round(item, 6) for item in narrowed]


@functools.cache
def _defects(recipe: str) -> list[dict[str, Any]]:
    """Returns the settings of the defects that occur on a surface, from the procedural datasets.

    On a surface that none of them uses, any of their defects occurs.
    """
    fitting: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for name in config_names():
        config = load_config(name)
        for settings in config["classes"].values():
            entry = {**settings, "overall": config["contrast"]}
            (fitting if recipe in config["surfaces"] else others).append(entry)
    return fitting or others


def render(params: Parameters, index: int) -> tuple[int, bytes]:
    """Renders one image; the same arguments give the same pixels on every machine.

    Args:
        params: The corpus.
        index: Which image, from 0.

    Returns:
        Index of its category, and the image as PNG (RGB, 8 bits).
    """
    surface, _ = _compose(params, index)
    noise = Source("corpus noise", *_words(params, index))
    return index % params.categories, encode_png(photograph(surface, noise))


def defect_mask(image_id: str) -> NDArray[np.bool_] | None:
    """Returns where the defects of a procedural image are: the union of their exact masks.

    Args:
        image_id: Of an image of any procedural corpus; it says how the image was made.

    Returns:
        bool (rows, columns), True on defects; None where the id is not that of a procedural image.
    """
    match = re.fullmatch(rf"{NAME}/s(\d{{1,19}})-k(\d{{1,4}})-(\d{{8,9}})", image_id, re.ASCII)
    if not match:
        return None
    seed, categories, index = (int(number) for number in match.groups())
    return _compose(Parameters(index + 1, categories, seed), index)[1]


def _words(params: Parameters, index: int) -> tuple[str | int, ...]:
    """Returns what the random numbers of an image depend on."""
    return NAME, list(category_recipes(params.categories))[index % params.categories], params.seed, index


def _compose(params: Parameters, index: int) -> tuple[Surface, NDArray[np.bool_]]:
    """Makes the surface of an image with its defects, not yet photographed, and their mask."""
    settings = _settings()
    name, recipe = list(category_recipes(params.categories).items())[index % params.categories]
    source = Source("corpus", *_words(params, index))
    surface = render_surface(recipe, source, (settings["size"][0], settings["size"][1]))
    covered = np.zeros(surface.gray.shape, bool)
    if source.chance(settings["defect_share"]):
        kinds = _defects(re.sub(r"_\d+$", "", name))
        for _ in range(source.pick(settings["defects"])):
            chosen = kinds[source.integer(0, len(kinds) - 1)]
            for _ in range(TRIES):
                mark = KINDS[chosen["kind"]](Site(surface, source, chosen, chosen["overall"]))
                if mark is not None and mark.box() is not None:
                    surface.gray[mark.window] += mark.delta
                    covered[mark.window] |= mark.mask
                    break
    return surface, covered


@functools.cache
def renderer_key() -> str:
    """Returns a key over the code and data that make the images: no corpus outlives them."""
    folders = Path(__file__).parent.parent / "synthetic", Path(__file__).parent
    files = sorted([*folders[0].rglob("*.py"), *folders[0].rglob("*.yaml"), folders[1] / "synthetic.py"])
    names = [[path.relative_to(folders[0].parent).as_posix(), file_sha256(path)] for path in files]
    return content_key([names, _settings()])


@dataclass(frozen=True)
class SyntheticJob:
    """A shard of a procedural corpus: images `start` to `stop` - 1."""

    name: str
    params: Parameters
    start: int
    stop: int
    source: str = NAME
    licence: str = LICENCE

    @property
    def key(self) -> str:
        """Hash of the parameters and of the renderer."""
        made_from = [self.params.categories, self.params.seed, self.start, self.stop]
        return content_key([VERSION, renderer_key(), made_from])

    @property
    def size(self) -> int:
        """Number of images."""
        return self.stop - self.start

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories in index order."""
        return tuple(category_recipes(self.params.categories))

    def rows(self) -> Iterator[Row | Skipped]:
        """Renders the images."""
        for index in range(self.start, self.stop):
            category, image = render(self.params, index)
            yield Row(f"{NAME}/s{self.params.seed}-k{self.params.categories}-{index:08d}", category, image)


@dataclass(frozen=True)
class SyntheticPlan:
    """The jobs of a procedural corpus; see `builder.Plan`."""

    params: Parameters

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories in index order."""
        return tuple(category_recipes(self.params.categories))

    @property
    def stamp(self) -> str:
        """Hash of the parameters and of the renderer."""
        p = self.params
        return content_key([VERSION, renderer_key(), p.images, p.categories, p.seed])

    @property
    def total(self) -> int:
        """Number of images."""
        return self.params.images

    def expected(self) -> list[dict[str, Any]]:
        """What the table of counts compares with: images of each category."""
        n, k = self.params.images, self.params.categories
        counts = {name: n // k + (place < n % k) for place, name in enumerate(self.categories)}
        return [
            {
                "name": NAME,
                "title": "procedural",
                "licence": LICENCE,
                "present": True,
                "expected": n,
                "expected_by_category": counts,
            }
        ]

    def jobs(self) -> Iterator[SyntheticJob]:
        """Yields the shards in order."""
        for number, start in enumerate(range(0, self.params.images, SHARD_IMAGES)):
            stop = min(start + SHARD_IMAGES, self.params.images)
            yield SyntheticJob(f"synthetic-{number:05d}", self.params, start, stop)
