"""As a new user: an idea of one's own, pretrained in plain torch, sent, seen on the board, finetuned again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server.server import HubServer

from leaderboard.data import Board, open_board

ROOT = Path(__file__).parents[3]
RESULTS = "board/results"
DATASET = "steel_pipe_toy"


def command(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def own_row(board: Board) -> Any:
    """Returns the one row that is not the paper's."""
    (row,) = board.rows[board.rows.trust != "reported"].itertuples()
    return row


@pytest.mark.slow
def test_an_idea_of_ones_own_becomes_a_row_of_the_board(tmp_path: Path, agssp_home: Path) -> None:
    weights, folder = tmp_path / "autoencoder.safetensors", tmp_path / "sent" / "autoencoder"
    made = command("docs/examples/autoencoder.py", weights, "32", "1")
    assert made.returncode == 0, made.stderr
    words = ["--backbone", "csp_darknet", "--name", "Autoencoder", "--licence", "apache-2.0"]
    words += ["--method-text", "A convolutional autoencoder on 32 generated surfaces, 1 epoch."]
    words += ["--pretrained-on", "corpus_synthetic", "--protocol", "mock-v1", "--device", "cpu"]
    prepare = [
        "-m",
        "benchmark",
        "submit",
        "prepare",
        weights,
        *words,
        "--datasets",
        "DATASET",
        "--seeds",
        "0",
        "1",
    ]
    prepare[prepare.index("DATASET")] = DATASET
    done = command(*prepare, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "2 records, valid" in done.stdout
    checked = command("-m", "benchmark", "submit", "validate", folder, "--json")
    assert json.loads(checked.stdout)["valid"], checked.stdout
    again = command(*prepare, "--out", folder)
    assert again.returncode == 2
    assert "is there already" in again.stderr

    with HubServer() as hub:
        hub.store.add_user("hf_ann", "ann")
        results = hub.store.create("dataset", RESULTS, False, "keeper")
        online = hub.client_environment("hf_ann", tmp_path / "hf")
        pushed = command("-m", "benchmark", "submit", "push", folder, "--repo", RESULTS, **online)
        assert pushed.returncode == 0, pushed.stderr
        reviewed = command("-m", "benchmark", "submit", "review", "--repo", RESULTS, "--comment", **online)
        assert reviewed.returncode == 0, reviewed.stdout + reviewed.stderr
        assert "**Valid**" in results.discussion(1).events[-1]["data"]["latest"]["raw"]
        results.merge(results.discussion(1), "keeper")
        board = tmp_path / "board"
        for path, file in results.commit("main").files.items():
            (board / path).parent.mkdir(parents=True, exist_ok=True)
            (board / path).write_bytes(file.content)

    row = own_row(open_board(board))
    assert (row.trust, row.submission, row.method, row.mode) == (
        "submitted",
        "Autoencoder",
        "autoencoder",
        "custom",
    )
    assert row.seeds == (0, 1)
    assert row.map50_error >= 0

    # A maintainer finetunes it again; on the same machine every number is the same.
    sent = board / "submissions" / "autoencoder"
    before = {path: path.read_bytes() for path in sent.rglob("*") if path.is_file()}
    verified = command("-m", "benchmark", "verify", "--rerun", sent, "--weights", weights, "--device", "cpu")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert verified.stdout.startswith("reproduced: ")
    assert own_row(open_board(board)).trust == "reproduced"
    assert all(path.read_bytes() == content for path, content in before.items())
    # Without a file given, they come from the address that was merged: the review has fetched them.
    fetched = command("-m", "benchmark", "verify", "--rerun", sent, "--device", "cpu")
    assert fetched.returncode == 0, fetched.stdout + fetched.stderr
    (sent / "weights.json").unlink()
    lost = command("-m", "benchmark", "verify", "--rerun", sent, "--device", "cpu")
    assert lost.returncode == 2
    assert "--weights FILE" in lost.stderr
    shutil.rmtree(board)
