"""The methods of pretraining, as data in `methods.yaml`: names, classes, and what they can pretrain."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from baselines import backbones


@cache
def _table() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text(encoding="utf-8"))


def families() -> dict[str, tuple[str, ...]]:
    """Returns every method with the families of backbones that it can pretrain."""
    return {
        method: tuple(name for name in backbones.names() if backbones.kind(name) in entry["kinds"])
        for method, entry in _table().items()
    }


def model_class(method: str) -> Any:
    """Returns the class of a method, one of `families()`; imports torch."""
    module, _, name = _table()[method]["class"].partition(":")
    return getattr(importlib.import_module(module), name)
