from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from made_sources import make_file, make_source

from datasets_builders import cli
from datasets_builders.corpus import names


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["datasets_builders", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return call


def test_prepare_corpus_prints_found_and_expected(run, tmp_path: Path) -> None:
    make_source(tmp_path, "mvtec")
    make_source(tmp_path, "magnetic_tile")
    (tmp_path / "magnetic_tile" / "MT_Free" / "Imgs" / "torn.jpg").write_bytes(b"torn")
    make_file(tmp_path / "something else" / "1.png")
    code, out, _ = run("prepare", "corpus", "--raw", tmp_path, "--workers", 1)
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[:4] for row in rows] == [
        ["magnetic_tile", "2 differs", "1344", "1"],
        ["Magnetic_tile", "2", "1344", ""],
        ["mvtec", "4 differs", "1384", ""],
        ["grid", "1", "342", ""],
        ["leather", "1", "369", ""],
        ["tile", "1", "347", ""],
        ["wood", "1", "326", ""],
    ]
    assert rows[0][5] == ""
    assert rows[2][4:] == ["CC BY-NC-SA 4.0", "not yet seen in the wild"]
    assert "not there, 32 source(s)" in out
    assert "severstal (8844)" in out
    assert "not a source, passed over: something else/" in out
    assert "skipped: magnetic_tile/MT_Free/Imgs/torn.jpg: not a" in out
    assert "6 images, 61 categories, 2 shards" in out
    assert "was ready" in run("prepare", "corpus", "--raw", tmp_path)[1]


def test_prepare_synthetic_and_list(run) -> None:
    code, out, _ = run(
        "prepare", "corpus_synthetic", "--images", 5, "--categories", 2, "--seed", 1, "--workers", 1
    )
    assert code == 0
    assert "corpus_synthetic/n5_k2_s1: built" in out
    code, out, _ = run("list")
    listed = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert set(names()) <= listed.keys()
    assert listed["corpus"][1:3] == ["61", "–"]
    assert listed["corpus_synthetic/n5_k2_s1"][1:3] == ["2", "5"]
    assert listed["corpus_synthetic/n5_k2_s1"][-1] == "yes"
    facts = {fact["name"]: fact for fact in json.loads(run("list", "--json")[1])}
    assert facts["corpus_x_sdd_gc10"]["kind"] == "corpus"
    assert len(facts["corpus_x_sdd_gc10"]["classes"]) == 17
    assert facts["corpus"]["ready"] is False


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["corpus"], "prepare corpus --raw DIR"),
        (["corpus", "--raw", "/nowhere"], "there is no folder"),
        (["corpus", "--partial"], "without --partial"),
        (["corpus_synthetic", "--images", "0"], "images = 0 is not in"),
        (["corpus_synthetic", "--raw", "/"], "leave out --raw"),
        (["neu_det", "--images", "5"], "are for corpora"),
        (["corpus_x_sdd_gc11", "--raw", "/"], "corpus_x_sdd_gc10"),
    ],
)
def test_mistakes_end_with_code_2_and_no_traceback(run, arguments: list[str], reason: str) -> None:
    code, _, err = run("prepare", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert reason in err
