"""Where submitted weights are, and whether they load into the backbone that they are said to be of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from baselines import backbones
from baselines.weights.sources import LocalWeights
from benchmark import protocol as protocols
from benchmark.records import read_model
from benchmark.submit.schema import ADDRESS_FILE, WEIGHTS_FILE, WeightsAddress
from datasets_builders.errors import UserError
from datasets_builders.storage import file_sha256

if TYPE_CHECKING:
    from baselines.weights import LoadReport


def weights_file(folder: Path, given: Path | None) -> Path:
    """Returns the weights of a submission, fetched where the folder holds no more than their address.

    Args:
        folder: The submission's folder.
        given: The weights file, where it does not lie in the folder.

    Raises:
        UserError: They are nowhere, or cannot be fetched.
    """
    from baselines.weights import resolve

    inside = folder / WEIGHTS_FILE
    if given is not None or inside.is_file():
        found = given or inside
        if not found.is_file():
            raise UserError(f"There is no weights file {found}.")
        return found
    if not (folder / ADDRESS_FILE).is_file():
        raise UserError(
            f"{folder} holds no weights: neither {WEIGHTS_FILE} nor {ADDRESS_FILE} that says where they are. Give the"
            " file with --weights FILE."
        )
    return resolve(read_model(folder / ADDRESS_FILE, WeightsAddress).address).path


@dataclass
class WeightsCheck:
    """A safetensors file that is to be loaded.

    Attributes:
        path: The file.
    """

    path: Path

    @cached_property
    def local(self) -> LocalWeights:
        """The file with its hash and the scope that its header states.

        Raises:
            UserError: It is no safetensors file, too large, damaged, or its header lies.
        """
        from baselines.weights import resolve

        with self.path.open("rb") as file:
            start = file.read(9)
        if start[8:9] != b"{":
            raise UserError(
                f"{self.path.name} is no safetensors file, and nothing else is taken from strangers: a pickle can hold"
                " code."
            )
        found = resolve(self.path)
        return LocalWeights(found.path, file_sha256(self.path), WEIGHTS_FILE, scope=found.scope)

    @property
    def scope(self) -> Literal["backbone", "detector"]:
        """What of the weights is used."""
        return "detector" if self.local.scope == "detector" else "backbone"

    def load(self, backbone: str, detector: str, protocol: str, classes: int) -> tuple[LoadReport, int]:
        """Loads them into a detector as a protocol builds it.

        Args:
            backbone: `name:variant`.
            detector: Its name.
            protocol: Such as `mini-v1`.
            classes: Number of classes.

        Returns:
            What became of every tensor, and the detector's trainable parameters.

        Raises:
            UserError: They do not fit, or hold values that are no numbers.
        """
        from baselines import openmmlab

        openmmlab.activate()
        from baselines.detectors import count_parameters
        from baselines.training.detector import new_detector
        from baselines.weights import load

        name, _, variant = backbone.partition(":")
        recipe = protocols.load(protocol).recipe(name, detector)
        model = new_detector(detector, backbones.get(name, variant), classes, recipe)
        return load(model, self.local, self.scope), count_parameters(model)
