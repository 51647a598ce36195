"""Ranks and groups of the rows of a dataset, and the scores that are kept for them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmark"))

from test_compare import labels_of, store_row

from benchmark import compare
from benchmark.rows import Row, rows
from benchmark.statistics.resampling import draw_images
from leaderboard import disk_cache, scores


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Two equal rows and a far better one, on labels that are not on disk."""
    monkeypatch.setattr(compare, "_labels", lambda dataset: labels_of(dataset.name))
    monkeypatch.setattr(compare, "draw_images", lambda images: draw_images(images, 200))
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "home"))
    for mode, found in (("scratch", 0.3), ("imagenet", 0.31), ("agssp", 0.95)):
        store_row(tmp_path / "results", mode, found)
    return rows(tmp_path / "results")


def test_kept_scores_are_the_computed_ones_and_are_not_computed_again(
    three: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scores.stored_scores(three[0]) is None
    made = scores.scores_of(three[0])
    monkeypatch.setattr(scores, "score_row", lambda row: pytest.fail("computed again"))
    kept = scores.scores_of(three[0])
    assert kept.images == made.images
    assert list(kept.classes) == list(made.classes)
    for name in ("map50", "map50_95"):
        assert np.array_equal(kept.metrics[name].points, made.metrics[name].points)
        assert np.array_equal(kept.metrics[name].resampled, made.metrics[name].resampled)
    for name in made.classes:
        assert np.array_equal(kept.classes[name].resampled, made.classes[name].resampled, equal_nan=True)


@pytest.mark.parametrize("kind", ["nonsense", "cut", "garbled"])
def test_damaged_scores_are_computed_again(three: list[Row], kind: str) -> None:
    made = scores.scores_of(three[0])
    (file,) = (Path(disk_cache.storage.home()) / "leaderboard").glob("scores-*.npz")
    content = file.read_bytes()
    half = len(content) // 2
    garbled = content[: half - 500] + bytes(1000) + content[half + 500 :]
    file.write_bytes({"nonsense": b"nonsense", "cut": content[:half], "garbled": garbled}[kind])
    assert scores.stored_scores(three[0]) is None
    assert scores.scores_of(three[0]).metrics["map50"].mean == made.metrics["map50"].mean


def test_the_better_row_is_first_and_the_equal_ones_share_a_group(three: list[Row]) -> None:
    told: list[int] = []
    found = scores.judge(three, told.append)
    assert told == [1, 2, 3]
    by_mode = {
        row.mode: (rank, group) for row, rank, group in zip(three, found.ranks, found.groups, strict=True)
    }
    assert by_mode["agssp"][0] == (1.0, 1.0, 1.0)
    assert by_mode["agssp"][1] == "a"
    assert by_mode["scratch"][1] == by_mode["imagenet"][1] == "b"
    for mode in ("scratch", "imagenet"):
        rank, low, high = by_mode[mode][0]
        assert 2 <= low <= rank <= high <= 3
    assert found.seeds_known
    assert found.smallest is not None


def test_letters_go_on_after_z() -> None:
    assert [scores._letter(n) for n in (0, 1, 25, 26, 27, 51, 52, 701, 702)] == (
        ["a", "b", "z", "aa", "ab", "az", "ba", "zz", "aaa"]
    )


def test_it_says_why_nothing_can_be_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path))
    assert scores.why_not("casting_billet_synthetic") is None
    assert "datasets_builders prepare neu_det" in str(scores.why_not("neu_det/mini50"))
    assert "no_such" in str(scores.why_not("no_such"))
