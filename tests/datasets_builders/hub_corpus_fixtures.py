"""A small corpus of two sources in five shards, and a command line to publish and fetch it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from hub_fixtures import REPO
from made_sources import make_file

from datasets_builders import storage
from datasets_builders.corpus import prepare_corpus, sources_on_disk

NAME = "corpus_x_sdd_gc10"
__all__ = ["NAME", "REPO", "encoded", "make_corpus", "quiet", "start"]


def encoded(rows: datasets.Dataset) -> datasets.Dataset:
    """Returns the rows with the files of their images."""
    return rows.cast_column("image", datasets.Image(decode=False))


def quiet(plan: str) -> None:
    """Listens and says nothing."""


def make_corpus(raw: Path) -> Path:
    """Makes the raw folder: 7 images of one source, 6 and a broken one of the other."""
    for number in range(4):
        make_file(raw / "gc10_cls224" / "crease" / f"{number}.png")
    for number in range(3):
        make_file(raw / "gc10_cls224" / "inclusion" / f"img {number} é.jpg")
    for number in range(3):
        make_file(raw / "x_sdd" / "slag inclusion" / f"{number}.png")
        make_file(raw / "x_sdd" / "red iron" / f"{number}.png")
    (raw / "x_sdd" / "slag inclusion" / "broken.jpg").write_bytes(b"no picture")
    return raw


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Builds the corpus in a cache of its own; returns the raw folder."""
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources_on_disk, "SHARD_IMAGES", 3)
    raw = make_corpus(tmp_path / "raw")
    prepare_corpus(NAME, raw, workers=1)
    return raw


def start(
    arguments: list[str], environment: dict[str, str], home: Path | None = None
) -> subprocess.Popen[str]:
    """Starts the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "datasets_builders", *arguments],
        env=os.environ | environment | {"AGSSP_BENCH_HOME": str(home or storage.home())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
