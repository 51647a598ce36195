"""The state of an unfinished training, written whole after an epoch, so that a killed run goes on from there."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets_builders.storage import atomic_file, file_sha256

logger = logging.getLogger(__name__)

_FILE = "progress.pt"
_DIGEST_BYTES = 32


@dataclass
class Progress:
    """Everything a training needs to go on as if it had not been interrupted.

    Attributes:
        epoch: Finished epochs.
        iteration: Finished iterations.
        model: Parameters and buffers of the trained model.
        ema: The same of its moving average, with the count of its updates.
        optimizer: The optimiser's state.
        history: What was measured so far (JSON values only).
    """

    epoch: int
    iteration: int
    model: dict[str, Any]
    ema: dict[str, Any]
    optimizer: dict[str, Any]
    history: dict[str, Any]


def save_progress(folder: Path, progress: Progress) -> None:
    """Replaces the folder's progress; a kill at any moment leaves the old or the new one, never a half."""
    state = {
        "epoch": progress.epoch,
        "iteration": progress.iteration,
        "model": progress.model,
        "ema": progress.ema,
        "optimizer": _plain(progress.optimizer),
        "history": json.dumps(progress.history, allow_nan=False),
    }
    with atomic_file(folder / _FILE) as temporary:
        torch.save(state, temporary)
        # torch does not notice a flipped bit in a tensor; a resumed training would go on with a wrong number.
        digest = file_sha256(temporary)
        with temporary.open("ab") as file:
            file.write(bytes.fromhex(digest))


def load_progress(folder: Path) -> Progress | None:
    """Returns the folder's progress, or None where there is none or it is damaged (which is said)."""
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
            raise ValueError("its hash does not match")
        state = torch.load(io.BytesIO(content[:-_DIGEST_BYTES]), map_location="cpu", weights_only=True)
        return Progress(**{**state, "history": json.loads(state["history"])})
    except Exception as error:  # torch raises many kinds for damaged bytes; all mean the same here
        logger.warning("%s is damaged (%s); the training starts anew.", path, type(error).__name__)
        path.unlink()
        return None


def remove_progress(folder: Path) -> None:
    """Forgets an unfinished training once its result is stored."""
    (folder / _FILE).unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Turns NumPy scalars into Python numbers: only plain types load again without running code."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
