"""Surface-defect datasets as clean, typed, pinned Hugging Face datasets.

Importing this package is cheap: `datasets`, PyArrow and NumPy are imported when a function first needs them.

Example:
    >>> import datasets_builders
    >>> train = datasets_builders.load("neu_det", "train")  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datasets_builders.errors import UserError
from datasets_builders.registry import DatasetCard, card, names

if TYPE_CHECKING:
    import datasets

    from datasets_builders.prepared import Prepared

__all__ = ["DatasetCard", "UserError", "card", "fingerprint", "is_ready", "load", "names", "prepare"]


def prepare(
    name: str,
    raw: Path | str | None = None,
    force: bool = False,
    partial: bool = False,
    hub: str | None = None,
) -> Prepared:
    """Builds or fetches a dataset unless it is there; see `datasets_builders.prepared.prepare`."""
    from datasets_builders import prepared

    return prepared.prepare(name, Path(raw) if raw is not None else None, force, partial, hub)


def load(name: str, split: str) -> datasets.Dataset:
    """Returns one verified split of a dataset; see `datasets_builders.prepared.load`."""
    from datasets_builders import prepared

    return prepared.load(name, split)


def fingerprint(name: str) -> str:
    """Returns the sha256 of a dataset's content; see `datasets_builders.prepared.fingerprint`."""
    from datasets_builders import prepared

    return prepared.fingerprint(name)


def is_ready(name: str) -> bool:
    """Tells whether a dataset is prepared on this machine, without reading its images."""
    from datasets_builders import prepared

    return prepared.is_ready(name)
