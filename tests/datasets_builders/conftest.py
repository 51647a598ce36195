"""Fixtures for datasets that are built from small raw folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_corpus_fixtures import corpus  # noqa: F401
from hub_fixtures import built_home, hub, local, waits  # noqa: F401
from made_raw import make_raw

from datasets_builders import registry


@pytest.fixture
def make_raw_folder(tmp_path: Path) -> Callable[..., Path]:
    return lambda name="raw", **kwargs: make_raw(tmp_path / name, **kwargs)


@pytest.fixture
def raw_folder(make_raw_folder: Callable[..., Path]) -> Path:
    """36 pictures and 72 boxes."""
    return make_raw_folder()


@pytest.fixture
def any_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `neu_det` be built from a few pictures, with subsets that fit them."""
    known = registry.cards()
    small = replace(known["neu_det"], expected=None, subsets={"mini50": 8, "mini100": 12})
    monkeypatch.setattr(registry, "cards", lambda: known | {"neu_det": small})
