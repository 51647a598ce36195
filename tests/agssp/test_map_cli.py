from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agssp.cli import run_app
from agssp.map_store import open_maps

CORPUS = "corpus_synthetic/n6_k3_s0"


def test_maps_and_their_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["maps", CORPUS, "--maps", "random", "--seed", "3", "--out", str(tmp_path / "maps"), "--json"]
    assert run_app(command) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    store = open_maps(tmp_path / "maps")
    assert found["finished"] is True
    assert found["fingerprint"] == store.fingerprint
    assert (found["maps"], found["grid"]) == (6, [16, 16])
    assert store.request["source"]["seed"] == 3
    assert "6 maps of 16 x 16, 3 categories" in output.err
    assert run_app(command) == 0


def test_a_shard_says_that_others_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = "corpus_synthetic/n150_k3_s0"
    command = ["maps", corpus, "--maps", "random", "--out", str(tmp_path / "maps"), "--num-shards", "2"]
    assert run_app([*command, "--shard", "1", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["finished"] is False
    assert "Shard 1 of 2 is done" in output.err
    assert run_app(command) == 0
    assert len(open_maps(tmp_path / "maps")) == 150


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--encoder", "tiny", "--maps", "oracle"], "give one of them"), (["--maps", "orcale"], "Unknown source of maps"),
     (["--encoder", "hgue"], "Did you mean 'huge'"), (["--maps", "random", "--precision", "fp32"], "not for random"),
     (["--maps", "random", "--num-shards", "2", "--shard", "2"], "counted from 0"),
     (["--maps", "memory:lite0", "--shots", "0"], "--shots 1 or more"),
     (["--maps", "memory:lite0", "--normals", "nowhere.txt"], "cannot be read"),
     (["--maps", "memory:lite0", "--normals", "labelled"], "is a corpus: its images have no labels")],
)  # fmt: skip
def test_wrong_input_leaves_with_2_and_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run_app(["maps", CORPUS, *options, "--out", str(tmp_path / "maps")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "maps").exists()


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from agssp.cli import run_app; run_app(['maps', '--help']); "
        "sys.exit(bool({'torch', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "--num-shards" in done.stdout
