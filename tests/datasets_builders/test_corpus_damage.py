"""One flipped bit in a corpus that is there, size and times as before."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from datasets_builders.corpus import load_corpus, prepare_corpus, store
from datasets_builders.errors import UserError

NAME = "corpus_synthetic/n6_k2_s0"


@pytest.fixture
def corpus(fresh_home: Path) -> Path:
    return prepare_corpus(NAME, workers=1).folder


def content(streaming: bool = False) -> list[bytes]:
    import datasets

    rows = load_corpus(NAME, streaming).cast_column("image", datasets.Image(decode=False))
    return [row["image"]["bytes"] for row in rows]


def flip(path: Path) -> None:
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    store._checked.clear()  # as in another process


def test_a_damaged_copy_is_made_again(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = content()
    (copy,) = (corpus / "arrow").glob("*.arrow")
    flip(copy)
    with caplog.at_level(logging.WARNING):
        assert content() == whole
    assert caplog.text.count("is damaged and is copied again") == 1
    (corpus / "arrow" / "sha256.json").write_text("[]")
    assert content() == whole


@pytest.mark.parametrize("streaming", [True, False])
def test_a_damaged_shard_is_refused_with_what_to_do(corpus: Path, streaming: bool) -> None:
    whole = content(streaming=True)
    (shard,) = corpus.glob("*.parquet")
    flip(shard)
    with pytest.raises(UserError, match=f"content has changed.*\n.*prepare {NAME} --force"):
        content(streaming)
    prepare_corpus(NAME, workers=1, force=True)
    assert content(streaming) == whole


def test_what_does_not_change_is_read_once(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content()
    whole = content()
    monkeypatch.setattr(store, "file_sha256", None)
    assert content() == whole


def test_processes_that_open_it_at_once_copy_it_once(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus / ".arrow.1-2.tmp").mkdir()  # left by one that was killed
    copies = []
    copy = store._copy_to_arrow

    def slowly(*arguments: Any) -> None:
        copies.append(arguments)
        time.sleep(0.2)
        copy(*arguments)

    monkeypatch.setattr(store, "_copy_to_arrow", slowly)
    with ThreadPoolExecutor(3) as pool:
        opened = list(pool.map(lambda _: len(load_corpus(NAME)), range(3)))
    assert (opened, len(copies)) == ([6] * 3, 1)
    assert not list(corpus.glob(".arrow*"))
