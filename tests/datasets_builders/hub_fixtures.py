"""A Hub on loopback that this process uses, and a small dataset to put there; imported by the tests of both ways."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server.client import use_hub
from hub_server.server import HubServer
from hub_sets import small_cards
from made_raw import make_raw

from datasets_builders import hub_export, prepared, registry

TOKEN = "hf_ann"
REPO = "lab/set"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Ann of the lab is logged in."""
    with HubServer() as server:
        server.store.add_user(TOKEN, "ann", orgs=["lab"])
        server.store.add_user("hf_bob", "bob")
        use_hub(server, TOKEN, tmp_path / "hf", monkeypatch)
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits: the seconds that somebody would have waited."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture(scope="session")
def built_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the small dataset is built, not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        cards = small_cards()
        patch.setattr(registry, "cards", lambda: cards)
        patch.setenv("AGSSP_BENCH_HOME", str(folder / "home"))
        prepared.prepare("neu_det", make_raw(folder / "raw"))
    return folder / "home"


@pytest.fixture
def local(built_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small dataset, built from raw files, in several shards when published."""
    cards = small_cards()
    monkeypatch.setattr(registry, "cards", lambda: cards)
    monkeypatch.setattr(hub_export, "SHARD_BYTES", 30_000)
    home = tmp_path / "home"
    shutil.copytree(built_home, home)
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(home))
    return home
