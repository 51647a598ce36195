"""The state of an unfinished training: whole or absent, and it runs no code when it loads."""

from __future__ import annotations

import hashlib
import logging
import pickle

import numpy as np
import pytest
import torch

from baselines.training.checkpoints import Progress, load_progress, remove_progress, save_progress


def progress() -> Progress:
    return Progress(
        epoch=3,
        iteration=30,
        model={"w": torch.arange(6.0).reshape(2, 3)},
        ema={"module.w": torch.ones(2, 3), "steps": torch.tensor(30)},
        optimizer={"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": np.float64(0.01)}]},
        history={"curve": [{"epoch": 1, "map50": None}], "best_epoch": None},
    )


def test_round_trip(tmp_path) -> None:
    save_progress(tmp_path, progress())
    loaded = load_progress(tmp_path)
    assert loaded is not None
    assert (loaded.epoch, loaded.iteration, loaded.history) == (3, 30, progress().history)
    assert torch.equal(loaded.model["w"], progress().model["w"])
    assert loaded.optimizer["param_groups"][0]["lr"] == 0.01
    remove_progress(tmp_path)
    assert load_progress(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_state_is_said_and_forgotten(tmp_path, caplog, damage: str) -> None:
    save_progress(tmp_path, progress())
    path = tmp_path / "progress.pt"
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[content.index(torch.arange(6.0).numpy().tobytes())] ^= 1
    else:
        content = bytearray()
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_progress(tmp_path) is None
    assert "starts anew" in caplog.text
    assert not path.exists()


def test_a_planted_pickle_is_not_run(tmp_path) -> None:
    class Planted:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    content = pickle.dumps(Planted())
    (tmp_path / "progress.pt").write_bytes(content + hashlib.sha256(content).digest())
    assert load_progress(tmp_path) is None
    assert not (tmp_path / "ran").exists()


def test_an_interrupted_write_leaves_the_old_state(tmp_path, monkeypatch) -> None:
    save_progress(tmp_path, progress())

    def half(state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_progress(tmp_path, progress())
    assert [p.name for p in tmp_path.iterdir()] == ["progress.pt"]
    assert load_progress(tmp_path) is not None
