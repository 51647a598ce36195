"""Procedural surface defects: believable metal, exact masks, the same bits on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets_builders.synthetic.scenes import Scene, config_names, load_config, render

__all__ = ["Scene", "config_names", "load_config", "render"]


def __getattr__(name: str) -> Any:
    """Imports the renderer, and with it NumPy, when first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from datasets_builders.synthetic import scenes

    return getattr(scenes, name)
