"""What a matrix will take: wall time where somebody has measured it, and room on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agssp.display import duration
from benchmark.matrix.graph import COMPUTING, Node
from benchmark.protocol import Protocol

_MILLIONS = {
    "csp_darknet:n": 3.0,
    "csp_darknet:s": 11.1,
    "resnet:slim": 4.5,
    "resnet:18": 17.2,
    "resnet:50": 114.7,
    "swin:nano": 3.3,
    "swin:tiny": 40.6,
    "swin:base": 109.6,
    "lite0:std": 4.7,
}
"""Parameters of YOLOv8 with each backbone, for 6 classes; the backbone alone and other detectors have about as many."""
_FILES = {"backbone": 1, "detector": 1, "cell": 2}
"""Weights that a node leaves; a cell has those of its last and of its best epoch."""


@dataclass(frozen=True)
class Estimate:
    """Cost of nodes that are not there yet.

    Attributes:
        seconds: Of the trainings that somebody has measured, one after the other on the reference machine.
        machine: That machine.
        measured: How many these are.
        unknown: Trainings and measurements whose time nobody knows.
        bytes: Of the weights that stay; images and maps come on top.
    """

    seconds: float
    machine: str
    measured: int
    unknown: int
    bytes: float

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return dict(vars(self))

    def lines(self) -> list[tuple[str, str]]:
        """Returns name and text of each line for people."""
        if self.measured:
            time = f"about {duration(self.seconds)} for {self.measured} cells, one by one, on {self.machine}"
            time += f"; {self.unknown} others: not measured" if self.unknown else ""
        else:
            time = "not measured" if self.unknown else "nothing is left to do"
        disk = f"about {self.bytes / 2**30:.1f} GiB of weights, besides images and maps"
        return [("time", time), ("disk", disk)]


def estimate(nodes: Iterable[Node], protocol: Protocol) -> Estimate:
    """Adds up what is known of some nodes.

    Args:
        nodes: Those that are to be executed.
        protocol: Has measured seconds of finetunings.
    """
    seconds, measured, unknown, room = 0.0, 0, 0, 0.0
    for node in nodes:
        room += _weights_bytes(node)
        if node.kind == "cell":
            cell = node.spec["cell"]
            detector = "" if cell["detector"] == "yolov8" else f" {cell['detector']}"
            known = protocol.estimate.seconds.get(f"{cell['backbone']}:{cell['variant']}{detector}")
            if known is not None:
                seconds, measured = seconds + known, measured + 1
                continue
        unknown += node.kind in COMPUTING
    return Estimate(seconds, protocol.estimate.machine, measured, unknown, room)


def _weights_bytes(node: Node) -> float:
    """Returns the size of the weights that a node leaves, in float32; 0 where nobody has counted them."""
    if node.kind not in _FILES:
        return 0.0
    cell = node.spec.get("cell")
    backbone = f"{cell['backbone']}:{cell['variant']}" if cell else node.spec["backbone"]
    return 4e6 * _FILES[node.kind] * _MILLIONS.get(backbone, 0.0)
