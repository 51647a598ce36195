"""`python -m agssp train-clip`: the tiny encoder, from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file

from agssp.tiny_clip.training import recipe, train
from datasets_builders.storage import file_sha256

_NAMES = {"images": "rendering images", "text": "text tower", "image": "image tower"}


def make(out: Path, seed: int, steps: int | None, images: int | None, workers: int) -> dict[str, Any]:
    """Trains with a progress bar on standard error; see `train`.

    Args:
        out: Folder to make.
        seed: Of everything random.
        steps: Of the image tower, instead of the recipe's.
        images: To render, instead of the recipe's.
        workers: Processes that render images.

    Returns:
        The weights' path, hash and number of values.
    """
    settings = recipe()
    if steps is not None:
        settings["image"]["steps"] = steps
    if images is not None:
        settings["images"] = images
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars = {
            name: progress.add_task(text, total=None, loss="", visible=False) for name, text in _NAMES.items()
        }

        def show(what: str, done: int, total: int, losses: Mapping[str, float]) -> None:
            loss = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            progress.update(bars[what], completed=done, total=total, loss=loss, visible=True)

        train(out, settings, seed=seed, workers=workers, on_progress=show)
    weights = out / "weights.safetensors"
    return {
        "weights": str(weights),
        "sha256": file_sha256(weights),
        "parameters": sum(tensor.numel() for tensor in load_file(weights).values()),
    }
