"""Measures KeAD against anomalib's WinCLIP: images a second, few-shot, same encoder, same images, one run.

    python tests/performance/bench_winclip.py [--images 16] [--winclip-images 2] [--shots 4] [--precision auto]

The encoder is ViT-B-16-plus-240 with random weights, which cost the same as trained ones. Preparing a category (texts,
normal images) is measured apart. A plain batched fp32 forward of the same encoder's vision tower is the third row.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from agssp.kead.encoder import load_encoder
from agssp.map_inputs import MapInput
from agssp.sources.kead import KeADSource
from baselines.training.resources import cores

MODEL = "ViT-B-16-plus-240"
CATEGORY = "steel_pipe"


def random_weights(folder: Path) -> Path:
    """Stores random weights of the encoder as a file, as a user's own would be."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = folder / "random.safetensors"
    model = open_clip.create_model(MODEL)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def timed(compute: Callable[[], object]) -> float:
    """Returns wall seconds."""
    began = time.perf_counter()
    compute()
    return time.perf_counter() - began


def main() -> None:
    """Prints images a second and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--winclip-images", type=int, default=2)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    console = Console()
    if importlib.util.find_spec("anomalib") is None:
        console.print("anomalib is not installed (extra anomaly): nothing to compare with.")
        return
    from agssp.sources.winclip import WinClipSource

    torch.set_num_threads(cores())
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (240, 240, 3), dtype=np.uint8) for _ in range(arguments.images)]
    inputs = [MapInput(str(index), CATEGORY, picture) for index, picture in enumerate(pictures)]
    table = Table(title=f"{MODEL}, {arguments.shots} shots, {cores()} cores")
    for column in ("", "prepare s", "images/s"):
        table.add_column(column)
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = random_weights(Path(folder))
        sources = {
            "KeAD": (KeADSource(MODEL, weights=weights, precision=arguments.precision), inputs),
            "WinCLIP": (WinClipSource(MODEL, weights=weights), inputs[: arguments.winclip_images]),
        }
        for name, (source, batch) in sources.items():
            models: list[object] = []
            normals = pictures[: arguments.shots]
            prepared = timed(lambda: models.append(source.fit(CATEGORY, normals)))  # noqa: B023
            if name == "KeAD":
                source.score(batch, models[0])  # what is done once per process
            rates[name] = len(batch) / timed(lambda: source.score(batch, models[0]))  # noqa: B023
            table.add_row(name, f"{prepared:.1f}", f"{rates[name]:.3f}")
        plain = load_encoder(MODEL, weights=weights, precision="fp32")
        pixels = plain.preprocess(pictures)
        with torch.inference_mode():
            plain.clip.visual(pixels[:1])
            rates["plain"] = len(pictures) / timed(lambda: plain.clip.visual(pixels))
    table.add_row("one plain fp32 forward", "-", f"{rates['plain']:.3f}")
    console.print(table)
    console.print(
        f"KeAD: {rates['KeAD'] / rates['WinCLIP']:.0f} times WinCLIP's images/s, "
        f"{rates['KeAD'] / rates['plain']:.2f} times a plain forward's"
    )


if __name__ == "__main__":
    main()
