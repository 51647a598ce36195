"""What the board keeps on disk is bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leaderboard.disk_cache import DiskCache


def test_those_unused_for_longest_leave_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path))
    cache, other = DiskCache("sheet", ".png", most=2), DiskCache("scores", ".npz", most=2)
    cache.trim()
    paths = {key: cache.path(key) for key in ("old", "older", "new")}
    paths["old"].parent.mkdir()
    for path in (*paths.values(), other.path("x")):
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    os.utime(paths["new"], (3, 3))
    assert cache.path("old") == paths["old"]  # a look counts as use
    cache.trim()
    other.trim()
    assert sorted(path.name for path in (tmp_path / "leaderboard").iterdir()) == [
        "scores-x.npz",
        "sheet-new.png",
        "sheet-old.png",
    ]
