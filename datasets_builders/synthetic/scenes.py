"""Scenes: a piece of metal, the defects on it, their exact masks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from datasets_builders.errors import UserError, unknown_name
from datasets_builders.synthetic.defects import KINDS
from datasets_builders.synthetic.marks import Mark, Site
from datasets_builders.synthetic.numerics import Source, pick_at
from datasets_builders.synthetic.surfaces import Surface, photograph, render_surface

SMALLEST_SIDE = 5
"""A defect's box is at least this wide and high, in pixels."""
SMALLEST_AREA = 24
"""A defect's mask has at least this many pixels."""
LARGEST_OVERLAP = 0.1
"""Two boxes of an image share at most this part of the smaller one."""
TRIES = 24
"""How often a defect that finds no room is drawn again before it is given up."""

_CONFIGS = Path(__file__).parent / "configs"
_SURFACES = "surfaces"
# Fractional parts of the plastic number's powers in 64 bits: indices spread evenly over the unit square.
_SPREAD = (0xC13FA9A902A6328F, 0x91E10DA5C79E7B1D)


@dataclass(frozen=True)
class Scene:
    """A rendered image with its defects.

    Attributes:
        image: RGB, uint8 (rows, columns, 3).
        masks: One mask a defect, uint8 (rows, columns), 1 inside.
        categories: One class index a defect, in the config's class order.
    """

    image: NDArray[np.uint8]
    masks: list[NDArray[np.uint8]]
    categories: list[int]


@dataclass(frozen=True)
class Placed:
    """A defect as it was put on the surface."""

    category: int
    mark: Mark


def config_names() -> list[str]:
    """Returns the names of the procedural datasets, sorted."""
    return sorted(path.stem for path in _CONFIGS.glob("*.yaml") if path.stem != _SURFACES)


@functools.cache
def load_config(name: str) -> dict[str, Any]:
    """Reads the config of a procedural dataset.

    Args:
        name: One of `config_names()`.

    Returns:
        The config: `name`, `title`, `version`, `seed`, `size`, `splits`, `classes` (in class order) and the
        knobs. Treat it as read-only: it is shared.

    Raises:
        UserError: There is no such config.
    """
    if name not in config_names():
        raise unknown_name("procedural dataset", name, config_names(), "python -m datasets_builders list")
    return _read(name)


@functools.cache
def surface_recipes() -> dict[str, Any]:
    """Reads the surface recipes by name (`configs/surfaces.yaml`); treat them as read-only."""
    return _read(_SURFACES)


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def render(config_name: str, index: int, split: str) -> Scene:
    """Renders one image of a procedural dataset; the same arguments give the same bits on every machine.

    Args:
        config_name: One of `config_names()`.
        index: Which image, from 0; no upper bound: the config's `splits` only say how many a dataset takes.
        split: `train` or `validation`.

    Returns:
        The image, its masks and categories (both empty for an image without defects).

    Raises:
        UserError: Unknown config or split, or a negative index.
    """
    config = load_config(config_name)
    surface, placed = compose(config, index, split)
    _, noise = _sources(config, index, split)
    shape = surface.gray.shape
    masks: list[NDArray[np.uint8]] = []
    for one in placed:
        mask = np.zeros(shape, np.uint8)
        mask[one.mark.window] = one.mark.mask
        masks.append(mask)
    return Scene(photograph(surface, noise), masks, [one.category for one in placed])


def _sources(config: Mapping[str, Any], index: int, split: str) -> tuple[Source, Source]:
    words = (config["name"], config["version"], config["seed"], split, index)
    return Source("scene", *words), Source("noise", *words)


def _even(config: Mapping[str, Any], index: int, split: str, dimension: int) -> float:
    """Returns a number in [0, 1) for an index such that any run of indices covers [0, 1) evenly."""
    offset = Source("even", config["name"], config["version"], config["seed"], split, dimension).uniform()
    return ((int(offset * 2**64) + index * _SPREAD[dimension]) % 2**64 >> 11) * 2.0**-53


def compose(
    config: Mapping[str, Any], index: int, split: str, skip: int | None = None
) -> tuple[Surface, list[Placed]]:
    """Makes the surface of a scene with its defects, not yet photographed.

    Args:
        config: The config (see `load_config`).
        index: Which image.
        split: Which split.
        skip: Leave this defect (its position in the result) off the surface; all else stays the same. For
            checking masks.

    Returns:
        The surface with the defects applied, and the defects in order.
    """
    if split not in config["splits"]:
        raise unknown_name("split", split, config["splits"], "python -m datasets_builders list")
    if index < 0:
        raise UserError(f"Image index {index} of {config['name']} is negative. Take an index from 0.")
    source, _ = _sources(config, index, split)
    recipe = surface_recipes()[source.pick(config["surfaces"])]
    surface = render_surface(recipe, source, (config["size"][0], config["size"][1]))
    placed: list[Placed] = []
    if _even(config, index, split, 0) < config["defect_free"]:
        return surface, placed
    classes = list(config["classes"])
    weights = {category: config["classes"][name]["frequency"] for category, name in enumerate(classes)}
    first = pick_at(weights, _even(config, index, split, 1))
    shown = dataclasses.replace(surface, gray=surface.gray.copy())
    for order in range(source.pick(config["per_image"])):
        repeat = order == 0 or source.chance(config["same_class"])
        category = first if repeat else source.pick(weights)
        mark = _place(surface, source, config["classes"][classes[category]], config["contrast"], placed)
        if mark is None and order == 0:
            # An image that should have a defect gets one, of another class if need be.
            category = source.pick({other: weight for other, weight in weights.items() if other != first})
            mark = _place(surface, source, config["classes"][classes[category]], config["contrast"], placed)
        if mark is None:
            continue
        surface.gray[mark.window] += mark.delta
        if len(placed) != skip:
            shown.gray[mark.window] += mark.delta
        placed.append(Placed(category, mark))
    return shown, placed


def _place(
    surface: Surface, source: Source, settings: Mapping[str, Any], contrast: float, placed: list[Placed]
) -> Mark | None:
    """Draws a defect until it fits: whole, large enough, and clear of the others."""
    others = [box for one in placed if (box := one.mark.box())]
    for _ in range(TRIES):
        mark = KINDS[settings["kind"]](Site(surface, source, settings, contrast))
        box = mark.box() if mark else None
        if mark is None or box is None or np.count_nonzero(mark.mask) < SMALLEST_AREA:
            continue
        if min(box[2] - box[0], box[3] - box[1]) < SMALLEST_SIDE:
            continue
        if all(_shared(box, other) <= LARGEST_OVERLAP for other in others):
            return mark
    return None


def _shared(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Returns the intersection of two boxes over the smaller box."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    area = min((one[2] - one[0]) * (one[3] - one[1]), (other[2] - other[0]) * (other[3] - other[1]))
    return wide * tall / area
