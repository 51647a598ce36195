"""Where anomaly maps come from: one interface, and the names under which sources are asked for."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agssp.map_inputs import Images, MapInput
from datasets_builders.errors import UserError, unknown_name


@dataclass(frozen=True)
class AnomalyMaps:
    """What a source says of N images.

    Attributes:
        maps: (N, h, w) float32 on the source's grid, which covers the whole image; higher is more anomalous.
        image_scores: (N,) float32, how anomalous each image is as a whole.
    """

    maps: NDArray[np.float32]
    image_scores: NDArray[np.float32]


class MapSource(ABC):
    """Makes anomaly maps.

    Attributes:
        name: As it is asked for, such as `kead:tiny`.
        device: Where it computes, as torch names it.
        batch_size: Images at once that suit it.
        needs_normals: Whether it compares with normal images of the category.
        needs_masks: Whether it wants the true masks.
        opened: Opens it again, in another process too; None where it was not opened by `open_source`.
    """

    name: str
    device: str = "cpu"
    batch_size: int = 32
    needs_normals: bool = False
    needs_masks: bool = False
    opened: Callable[[], MapSource] | None = None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns everything that changes the maps, JSON-able."""

    def check(self, images: Images) -> None:  # noqa: B027 - most sources can map any images
        """Looks whether it can map these images, before work begins.

        Raises:
            UserError: It cannot.
        """

    def fit(self, category: str, normals: Sequence[NDArray[np.uint8]]) -> Any:
        """Returns its model of a category, for `score`.

        Args:
            category: Its name.
            normals: Normal images, (H, W, 3) RGB uint8; none where it needs none.
        """
        return None

    @abstractmethod
    def score(self, batch: Sequence[MapInput], model: Any) -> AnomalyMaps:
        """Makes the maps of images of one category, with the model of that category."""


@runtime_checkable
class ChoosesNormals(Protocol):
    """What a source must be able to do for normal images to be chosen automatically; see `agssp.normals`."""

    def rate(self, category: str, batch: Sequence[MapInput]) -> NDArray[np.float32] | None:
        """Returns how anomalous images are without any normal image to compare with, (N,); None: it cannot tell."""

    def embed(self, batch: Sequence[MapInput]) -> NDArray[np.float32]:
        """Returns a feature of each whole image, (N, D), L2-normalised."""


@dataclass(frozen=True)
class SourceOptions:
    """Settings that only some sources take; a source that does not take one refuses it.

    Attributes:
        encoder_weights: A local file with the encoder's weights.
        precision: Of the encoder; None for the source's own choice.
        settings: Of `KeADSettings`, by name, where they are not to be the paper's.
        descriptions: The user's own descriptions of objects and defects; see `agssp.kead.knowledge`.
    """

    encoder_weights: Path | None = None
    precision: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    descriptions: Path | None = None


def open_source(
    spec: str, *, seed: int = 0, device: str = "cpu", options: SourceOptions | None = None
) -> MapSource:
    """Opens a source of maps.

    Args:
        spec: `kead:ENCODER`, `winclip:ENCODER`, `memory:lite0`, `oracle`, `random` or `folder:DIR`.
        seed: Of sources that draw numbers.
        device: Of torch, such as `cpu` or `cuda`.
        options: Settings of some sources.

    Raises:
        UserError: There is no such source, or it cannot be opened.
    """
    options = options or SourceOptions()
    kind, _, rest = spec.partition(":")
    if kind not in _OPENERS:
        raise unknown_name("source of maps", spec, _FORMS.values(), "python -m agssp maps --help")
    if bool(rest) != (":" in _FORMS[kind]):
        raise UserError(f"--maps {spec}: write {_FORMS[kind]}. See: python -m agssp maps --help")
    if kind not in ("kead", "winclip") and options != SourceOptions():
        raise UserError(
            f"--encoder-weights, --precision, --descriptions and switches are for kead and winclip, not for {spec}."
        )
    source = _OPENERS[kind](rest, seed, device, options)
    source.opened = functools.partial(open_source, spec, seed=seed, device=device, options=options)
    return source


def _kead(encoder: str, seed: int, device: str, options: SourceOptions) -> MapSource:
    from agssp.sources.kead import KeADSource

    return KeADSource(
        encoder,
        device,
        options.encoder_weights,
        options.precision or "auto",
        options.settings,
        options.descriptions,
    )


def _winclip(encoder: str, seed: int, device: str, options: SourceOptions) -> MapSource:
    from agssp.sources.winclip import WinClipSource

    if options.settings or options.precision not in (None, "fp32"):
        raise UserError(
            "winclip has no settings, and computes in fp32. Leave out --precision and the switches."
        )
    return WinClipSource(encoder, device, options.encoder_weights, options.descriptions)


def _memory(network: str, seed: int, device: str, options: SourceOptions) -> MapSource:
    from agssp.sources.memory import MemorySource

    if network != "lite0":
        raise UserError(f"--maps memory:{network}: the only network is lite0. Write memory:lite0.")
    return MemorySource(device)


def _oracle(rest: str, seed: int, device: str, options: SourceOptions) -> MapSource:
    from agssp.sources.oracle import OracleSource

    return OracleSource()


def _random(rest: str, seed: int, device: str, options: SourceOptions) -> MapSource:
    from agssp.sources.random_maps import RandomSource

    return RandomSource(seed)


def _folder(folder: str, seed: int, device: str, options: SourceOptions) -> MapSource:
    from agssp.sources.folder import FolderSource

    return FolderSource(Path(folder).expanduser())


_OPENERS: dict[str, Callable[[str, int, str, SourceOptions], MapSource]] = {
    "kead": _kead,
    "winclip": _winclip,
    "memory": _memory,
    "oracle": _oracle,
    "random": _random,
    "folder": _folder,
}
_FORMS = {
    "kead": "kead:ENCODER",
    "winclip": "winclip:ENCODER",
    "memory": "memory:lite0",
    "oracle": "oracle",
    "random": "random",
    "folder": "folder:DIR",
}
