"""Images to train the tiny CLIP on: metal and other textures, with and without defects, and where each defect lies.

The surfaces and defects are the generator's own (`datasets_builders.synthetic`); the random numbers belong to this
module alone, so no image is one of an evaluation set or of `corpus_synthetic`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from datasets_builders.storage import atomic_file
from datasets_builders.synthetic.defects import KINDS
from datasets_builders.synthetic.marks import Frame, Mark, Site
from datasets_builders.synthetic.numerics import Field, Source, ramp, smooth
from datasets_builders.synthetic.scenes import config_names, load_config, surface_recipes
from datasets_builders.synthetic.surfaces import photograph, render_surface

ANY = "any"
"""Name of a surface that is no metal in particular."""
_TRIES = 12
_PART = 250
"""Images rendered, and stored, at once."""


def _tone(site: Site, frame: Frame, cell: float) -> Field:
    """Another brightness, cloudy."""
    return (1 + 0.4 * site.noise(frame, cell, 2)) * (0.8 * site.source.sign())


def _rough(site: Site, frame: Frame, cell: float) -> Field:
    """Another texture of the same brightness."""
    return site.noise(frame, min(cell, 12.0), site.source.integer(1, 4)) * 1.3


def _network(site: Site, frame: Frame, cell: float) -> Field:
    """A net of fine lines."""
    width = site.source.uniform(4, 9)
    return smooth(np.clip(1 - np.abs(site.noise(frame, min(cell, 16.0), 2)) * width, 0, 1)) * -1.1


def _dots(site: Site, frame: Frame, cell: float) -> Field:
    """Many small spots."""
    noise = site.noise(frame, max(2.5, min(cell, 8.0)), 1)
    return np.clip((noise - site.source.uniform(0.1, 0.5)) * 4, 0, 1) * (1.2 * site.source.sign())


BLEMISHES: dict[str, Callable[[Site, Frame, float], Field]] = {
    "patch": _tone,
    "rough_area": _rough,
    "crazing": _network,
    "pitting": _dots,
}
"""Defects without a generator of their own, by the change they make inside an irregular outline."""

DEFECTS = (*sorted(KINDS), *BLEMISHES)
"""Names of all defects; `Example.kinds` holds 1 + the index in this tuple."""


@dataclass(frozen=True)
class Example:
    """One training image.

    Attributes:
        image: RGB, uint8 (rows, columns, 3).
        kinds: What each pixel shows, uint8 (rows, columns): 0 no defect, else 1 + index in `DEFECTS`.
        surface: Recipe of the surface, or `ANY`.
    """

    image: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    surface: str


@functools.cache
def settings() -> dict[str, Any]:
    """Reads `scenes.yaml`; treat it as read-only."""
    content: dict[str, Any] = yaml.safe_load(
        Path(__file__).with_name("scenes.yaml").read_text(encoding="utf-8")
    )
    return content


def surfaces() -> tuple[str, ...]:
    """Returns the names of all surfaces; a stored example holds the index in this tuple."""
    return (*surface_recipes(), ANY)


@functools.cache
def _known(surface: str) -> list[dict[str, Any]]:
    """Returns the settings of the defects that the procedural datasets show on a surface (all if it has none)."""
    configs = [load_config(name) for name in config_names()]
    fitting = [config for config in configs if surface in config["surfaces"]] or configs
    return [entry | {"overall": one["contrast"]} for one in fitting for entry in one["classes"].values()]


def render(seed: int, index: int) -> Example:
    """Renders one training image; the same arguments give the same pixels on every machine."""
    knobs = settings()
    words = ("tiny clip", seed, index)
    source, noise = Source("scene", *words), Source("noise", *words)
    names = surfaces()
    surface = ANY if source.chance(knobs["any_surface"]) else names[source.integer(0, len(names) - 2)]
    recipe = knobs["surface"] if surface == ANY else surface_recipes()[surface]
    metal = render_surface(recipe, source, (knobs["size"][0], knobs["size"][1]))
    kinds = np.zeros(knobs["size"], np.uint8)
    if not source.chance(knobs["defect_free"]):
        for _ in range(source.pick(knobs["defects"])):
            for _ in range(_TRIES):
                name, make, entry = _draw(source, surface)
                contrast = entry["overall"] * source.between(knobs["contrast"])
                mark = make(Site(metal, source, entry, contrast))
                if mark is not None and mark.box() is not None:
                    metal.gray[mark.window] += mark.delta
                    kinds[mark.window][mark.mask] = DEFECTS.index(name) + 1
                    break
    return Example(photograph(metal, noise), kinds, surface)


def _draw(source: Source, surface: str) -> tuple[str, Callable[[Site], Mark | None], dict[str, Any]]:
    """Draws a defect for a surface: its name, what makes it, and its settings."""
    if source.chance(settings()["blemish"]):
        name = list(BLEMISHES)[source.integer(0, len(BLEMISHES) - 1)]
        return name, functools.partial(_blemish, BLEMISHES[name]), settings()["blemishes"]
    entries = _known(ANY if source.chance(settings()["other_kind"]) else surface)
    entry = entries[source.integer(0, len(entries) - 1)]
    return entry["kind"], KINDS[entry["kind"]], entry


def _blemish(change: Callable[[Site, Frame, float], Field], site: Site) -> Mark | None:
    """Changes the surface inside an irregular outline."""
    source, length = site.source, site.size()
    half = (length / 2, length / 2 * source.uniform(0.25, 1.0))
    frame = site.frame(half[0] * 1.25, half[1] * 1.25, site.turn())
    if frame is None:
        return None
    body = site.blob(frame, half, source.uniform(0.1, 0.45), max(3.0, length / 4), 3)
    cover = ramp(body, source.uniform(0.05, 0.3))
    made = change(site, frame, max(2.5, length * source.uniform(0.05, 0.4)))
    return frame.mark(cover, np.clip(made * site.strength(), -0.85, 1.2))


@dataclass(frozen=True)
class Examples:
    """Rendered examples.

    Attributes:
        images: uint8 (N, rows, columns, 3).
        kinds: uint8 (N, rows, columns), see `Example.kinds`.
        surfaces: uint8 (N,), indices in `surfaces()`.
    """

    images: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    surfaces: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)


def _part(seed: int, start: int, stop: int) -> Examples:
    made = [render(seed, index) for index in range(start, stop)]
    names = surfaces()
    return Examples(
        np.stack([one.image for one in made]),
        np.stack([one.kinds for one in made]),
        np.array([names.index(one.surface) for one in made], np.uint8),
    )


def load_examples(
    folder: Path,
    seed: int,
    count: int,
    workers: int,
    on_progress: Callable[[str, int, int, Mapping[str, float]], None],
) -> Examples:
    """Renders images 0 to `count` - 1, or reads them where a run before this one did; `workers` changes nothing.

    Args:
        folder: Where the rendered images are kept, in parts.
        seed: Of the images.
        count: How many.
        workers: Processes.
        on_progress: Told of every part: `images`, how many are there, of how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, _PART)
    paths = [folder / f"images-{start:06d}.npz" for start in starts]
    missing = [(start, path) for start, path in zip(starts, paths, strict=True) if not path.exists()]
    with ProcessPoolExecutor(workers) as pool:
        made = (
            pool.map(
                _part, *zip(*((seed, start, min(start + _PART, count)) for start, _ in missing), strict=True)
            )
            if missing
            else ()
        )
        for number, ((_, path), part) in enumerate(zip(missing, made, strict=True), start=1):
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, images=part.images, kinds=part.kinds, surfaces=part.surfaces)
            on_progress("images", min(count, (len(paths) - len(missing) + number) * _PART), count, {})
    with ExitStack() as opened:
        parts = [opened.enter_context(np.load(path)) for path in paths]
        return Examples(
            *(np.concatenate([part[name] for part in parts]) for name in ("images", "kinds", "surfaces"))
        )
