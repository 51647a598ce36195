"""Measures KeAD with four shots against one plain forward of the same ViT, and against WinCLIP from anomalib.

    python tests/performance/bench_kead.py [--rounds 5] [--no-winclip]

The encoder is ViT-B-16-plus-240 with random weights, which cost what trained ones cost. All contestants get the
same images in the same run, in turns, so that a machine busy with other work slows all of them; ratios are of the
medians, in wall time and in processor time. AUROC is that of KeAD on procedural surfaces with true masks, in the
precision it chooses by itself and in float32: with random weights it is the distance to the normal images that
finds defects, which is signal enough to see whether precision costs any.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from agssp.kead.encoder import load_encoder
from agssp.kead.kead import KeAD, KeADSettings
from datasets_builders.synthetic import render

BATCH = 8
SHOTS = 4
CONFIG = "steel_pipe_synthetic"
MODEL = "ViT-B-16-plus-240"
# The texts are encoded once for a category and not timed: fewer of them only make this script start sooner.
SETTINGS = KeADSettings(descriptions=False)


def random_weights(folder: Path) -> Path:
    """Stores the model as open_clip initialises it."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.CLIP(**open_clip.get_model_config(MODEL))
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def scenes(normal: int, defective: int, start: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Renders images and their masks (one for the whole image, 1 inside defects)."""
    images, masks, wanted = [], [], {False: normal, True: defective}
    index = start
    while any(wanted.values()):
        scene = render(CONFIG, index, "train")
        index += 1
        kind = bool(scene.masks)
        if wanted[kind]:
            wanted[kind] -= 1
            images.append(scene.image)
            empty = np.zeros(scene.image.shape[:2], np.uint8)
            masks.append(np.maximum.reduce([empty, *scene.masks]))
    return images, masks


def aurocs(maps: np.ndarray, scores: np.ndarray, masks: list[np.ndarray], size: int) -> tuple[float, float]:
    """Image and pixel AUROC, the maps enlarged and the masks resized to the encoder's input."""
    truth = np.stack([cv2.resize(mask, (size, size), interpolation=cv2.INTER_LINEAR) for mask in masks]) > 0
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size=(size, size), mode="bilinear", align_corners=True
    )
    image = roc_auc_score(truth.any(axis=(1, 2)), scores)
    return float(image), float(roc_auc_score(truth.ravel(), enlarged.numpy().ravel()))


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-winclip", action="store_true", help="leave out WinCLIP, which takes minutes")
    arguments = parser.parse_args()
    console = Console()

    with tempfile.TemporaryDirectory() as folder:
        weights = random_weights(Path(folder))
        encoders = {"auto": load_encoder("base", weights=weights)}
        encoders["fp32"] = load_encoder("base", weights=weights, precision="fp32")
        winclip_encoder = load_encoder("base", weights=weights, precision="fp32")
    kead = {name: KeAD(encoder, SETTINGS) for name, encoder in encoders.items()}
    normals, _ = scenes(SHOTS, 0, start=0)
    images, masks = scenes(12, 12, start=1000)
    models = {name: one.fit("steel_pipe", normals) for name, one in kead.items()}
    precision = encoders["auto"].identity["precision"]

    batch = images[:BATCH]
    pixels = encoders["fp32"].preprocess(batch)

    def plain() -> None:
        with torch.inference_mode():
            encoders["fp32"].clip.encode_image(pixels)

    contestants: dict[str, tuple[Callable[[], object], int]] = {
        "plain fp32 forward": (plain, BATCH),
        f"KeAD, {SHOTS} shots, {precision}": (lambda: kead["auto"].score(batch, models["auto"]), BATCH),
        f"KeAD, {SHOTS} shots, fp32": (lambda: kead["fp32"].score(batch, models["fp32"]), BATCH),
    }
    for call, _ in contestants.values():
        call()
    measured = {name: np.array([[0.0, 0.0]] * arguments.rounds) for name in contestants}
    for turn in range(arguments.rounds):
        for name, (call, _) in contestants.items():
            measured[name][turn] = seconds(call)

    if arguments.no_winclip:
        console.print("WinCLIP: left out (--no-winclip)")
    elif importlib.util.find_spec("anomalib") is None:
        console.print("WinCLIP: not measured, anomalib is not installed (pip install 'agssp-bench[anomaly]')")
    else:
        from baselines.anomaly import WinClip

        winclip = WinClip(
            winclip_encoder.clip,
            winclip_encoder.preprocess,
            winclip_encoder.tokenizer,
            winclip_encoder.identity,
        )
        known = winclip.fit("steel pipe", normals)
        few = batch[:2]
        name = f"WinCLIP (anomalib), {SHOTS} shots"
        # Neighbouring turns of KeAD, so that both see the same machine.
        contestants[name] = (lambda: winclip.score(few, known), len(few))
        measured[name] = np.array([seconds(contestants[name][0])])
        own = f"KeAD, {SHOTS} shots, {precision}"
        after = np.array([seconds(contestants[own][0])])
        measured[own] = np.concatenate([measured[own], after])

    table = Table(
        "", "images/s", "to plain forward", "images/s of processor time", "to plain forward",
        title=f"{MODEL}, {BATCH} images of {batch[0].shape[1]}x{batch[0].shape[0]}, "
        f"{torch.get_num_threads()} threads, median of {arguments.rounds}",
    )  # fmt: skip
    rates = {name: contestants[name][1] / np.median(times, axis=0) for name, times in measured.items()}
    base = rates["plain fp32 forward"]
    for name, rate in rates.items():
        wall, processor = rate / base
        table.add_row(name, f"{rate[0]:.2f}", f"{wall:.2f}", f"{rate[1]:.2f}", f"{processor:.2f}")
    console.print(table)
    slowest = f"WinCLIP (anomalib), {SHOTS} shots"
    if slowest in rates:
        wall, processor = rates[f"KeAD, {SHOTS} shots, {precision}"] / rates[slowest]
        console.print(f"KeAD to WinCLIP: {wall:.0f} times in wall time, {processor:.0f} in processor time")

    for name, one in kead.items():
        result = one.score(images, models[name])
        image, pixel = aurocs(result.maps, result.image_scores, masks, encoders[name].image_size)
        used = encoders[name].identity["precision"]
        console.print(
            f"AUROC, {len(images)} images of {CONFIG}, {used}: image {image:.4f}, pixel {pixel:.4f}"
        )


if __name__ == "__main__":
    main()
