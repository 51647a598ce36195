"""The backbones of the benchmark: data in `backbones.yaml`, built from classes of mmyolo, mmdet and timm."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from datasets_builders.errors import unknown_name

_FILE = Path(__file__).with_name("backbones.yaml")


@dataclass(frozen=True)
class Backbone:
    """One backbone at one size.

    Attributes:
        name: Family, such as `csp_darknet` or `swin`.
        variant: Size within the family, such as `n`, `50` or `base`.
        title: Name for people.
        config: Settings that mmengine's registry builds it from.
        out_channels: Channels of the three feature maps, at strides 8, 16 and 32.
        neck: YOLOv8's neck and head channels for it (`in_channels`, `out_channels`, `widen_factor`).
    """

    name: str
    variant: str
    title: str
    config: dict[str, Any]
    out_channels: tuple[int, int, int]
    neck: dict[str, Any]

    @property
    def id(self) -> str:
        """The name to type, such as `swin:nano`."""
        return f"{self.name}:{self.variant}"


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def names() -> list[str]:
    """Returns the backbone families."""
    return list(_table())


def variants(name: str) -> list[str]:
    """Returns the sizes of a family.

    Raises:
        UserError: No family has this name.
    """
    if name not in _table():
        raise unknown_name("backbone", name, names(), see="python -m benchmark list")
    return list(_table()[name]["variants"])


def get(name: str, variant: str) -> Backbone:
    """Returns a backbone at a size.

    Raises:
        UserError: No such family, or no such size in it.
    """
    known = variants(name)
    if variant not in known:
        raise unknown_name(f"variant of {name}", variant, known, see="python -m benchmark list")
    family = _table()[name]
    entry = family["variants"][variant]
    widths = entry["out_channels"]
    same = {"in_channels": widths, "out_channels": widths, "widen_factor": 1.0}
    return Backbone(
        name=name,
        variant=variant,
        title=f"{family['title']} {variant}",
        config={"type": family["type"], **entry.get("settings", {})},
        out_channels=tuple(widths),
        neck=entry.get("neck", same),
    )


def kind(name: str) -> str:
    """Returns the kind of a family: `convolutional` or `windowed` (a transformer with shifted windows)."""
    return str(_table()[name]["kind"])


def register() -> None:
    """Imports the modules with this project's own classes, which registers them; OpenMMLab must be activated."""
    for family in _table().values():
        if "module" in family:
            importlib.import_module(family["module"])
