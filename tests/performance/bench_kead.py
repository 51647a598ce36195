"""Measures KeAD with four shots against one plain forward of the same ViT, and against WinCLIP from anomalib.

    python tests/performance/bench_kead.py [--rounds 5] [--no-winclip] [--shipped-batch 8] [--images 300]

The encoder is ViT-B-16-plus-240 with random weights, which cost what trained ones cost. All contestants get the
same images in the same run, in turns, so that a machine busy with other work slows all of them; ratios are of the
medians, in wall time and in processor time.

WinCLIP is anomalib's own forward, in float32: once with every window as a sequence of its own, as it is meant
(`baselines/anomaly.py`), one image a turn, since most of its work is on the hundreds of windows of each image and more
at once are no faster; and as anomalib ships it, where with this open_clip the windows of all images of a call attend
to each other: one image a call, as anomalib's `Engine.predict` reads a folder, and several, once. Its data modules
give it 32, which takes minutes.

What bf16 costs is measured on procedural surfaces with true masks: AUROC with the trained `tiny`, computed as `base`
is, with prepacked weights; and for `base` how well the scores of both precisions agree: random weights find little.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from agssp.kead.encoder import Encoder, load_encoder
from agssp.kead.kead import KeAD, KeADSettings
from agssp.kead.products import PrepackedProducts
from datasets_builders.synthetic import config_names, render

BATCH = 8
SHOTS = 4
CONFIG = "steel_pipe_synthetic"
WINCLIP = f"WinCLIP (anomalib), {SHOTS} shots, fp32"
SHIPPED = f"{WINCLIP}, as shipped"
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


def scenes(
    normal: int, defective: int, start: int, config: str = CONFIG
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Renders images and their masks (one for the whole image, 1 inside defects)."""
    images, masks, wanted = [], [], {False: normal, True: defective}
    index = start
    while any(wanted.values()):
        scene = render(config, index, "train")
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


def winclips_of(
    encoder: Encoder, normals: list[np.ndarray], console: Console
) -> dict[str, Callable[[Any], object]]:
    """Returns anomalib's WinCLIP with its normal images, corrected and as shipped; nothing where it is missing."""
    if importlib.util.find_spec("anomalib") is None:
        console.print("WinCLIP: not measured, anomalib is not installed (pip install 'agssp-bench[anomaly]')")
        return {}
    from baselines import anomaly

    winclip = anomaly.WinClip(encoder.clip, encoder.preprocess, encoder.tokenizer, encoder.identity)
    corrected = winclip.fit("steel pipe", normals)
    with mock.patch.object(anomaly, "_windows_as_batch"):  # the correction
        shipped = winclip.fit("steel pipe", normals)
    return {
        WINCLIP: lambda images: corrected(encoder.preprocess(images)),
        SHIPPED: lambda images: shipped(encoder.preprocess(images)),
    }


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=300, help="of each set, for AUROC")
    parser.add_argument("--no-winclip", action="store_true", help="leave out WinCLIP, which takes minutes")
    parser.add_argument(
        "--shipped-batch", type=int, default=BATCH, help="images a call of WinCLIP as shipped"
    )
    arguments = parser.parse_args()
    console = Console()

    with tempfile.TemporaryDirectory() as folder:
        weights = random_weights(Path(folder))
        encoders = {"auto": load_encoder("base", weights=weights)}
        encoders["fp32"] = load_encoder("base", weights=weights, precision="fp32")
        winclip_encoder = load_encoder("base", weights=weights, precision="fp32")
    kead = {name: KeAD(encoder, SETTINGS) for name, encoder in encoders.items()}
    normals, _ = scenes(SHOTS, 0, start=0)
    batch, _ = scenes(BATCH // 2, BATCH // 2, start=1000)
    models = {name: one.fit("steel_pipe", normals) for name, one in kead.items()}
    precision = encoders["auto"].identity["precision"]

    pixels = encoders["fp32"].preprocess(batch)

    def plain() -> None:
        with torch.inference_mode():
            encoders["fp32"].clip.encode_image(pixels)

    contestants: dict[str, tuple[Callable[[], object], int]] = {
        "plain fp32 forward": (plain, BATCH),
        f"KeAD, {SHOTS} shots, {precision}": (lambda: kead["auto"].score(batch, models["auto"]), BATCH),
        f"KeAD, {SHOTS} shots, fp32": (lambda: kead["fp32"].score(batch, models["fp32"]), BATCH),
    }
    winclips = {} if arguments.no_winclip else winclips_of(winclip_encoder, normals, console)
    for name, winclip in winclips.items():
        contestants[name] = (functools.partial(winclip, batch[:1]), 1)
    for call, _ in contestants.values():
        call()
    measured = {name: np.array([[0.0, 0.0]] * arguments.rounds) for name in contestants}
    for turn in range(arguments.rounds):
        for name, (call, _) in contestants.items():
            measured[name][turn] = seconds(call)
    if winclips:
        many = (batch * -(-arguments.shipped_batch // BATCH))[: arguments.shipped_batch]
        together = f"{SHIPPED}, {len(many)} images a call, once"
        contestants[together] = (functools.partial(winclips[SHIPPED], many), len(many))
        measured[together] = np.array([seconds(contestants[together][0])])

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
    ours = f"KeAD, {SHOTS} shots, {precision}"
    for name in rates:
        if name.startswith(WINCLIP):
            wall, processor = rates[ours] / rates[name]
            console.print(f"KeAD to {name}: {wall:.1f} times in wall time, {processor:.1f} in processor time")

    if not PrepackedProducts.available(torch.bfloat16):
        console.print(
            "What bf16 costs: not measured, this processor has no bf16 products; KeAD computes in fp32"
        )
        return
    images, _ = scenes(16, 16, start=1000)
    found = [one.score(images, models[name]) for name, one in kead.items()]
    pixels_agree, images_agree = (
        np.corrcoef(*(getattr(one, part).ravel() for one in found))[0, 1] for part in ("maps", "image_scores")
    )
    console.print(
        f"{MODEL}, random weights, {len(images)} images, {precision} and fp32: correlation of the maps' values "
        f"{pixels_agree:.5f}, of the images' scores {images_agree:.5f}"
    )
    for config in config_names():
        console.print(precision_cost(config, arguments.images))


def precision_cost(config: str, count: int) -> str:
    """Says what AUROC the trained `tiny` has in fp32 and in bf16, four shots."""
    normals, _ = scenes(SHOTS, 0, start=0, config=config)
    images, masks = scenes(count // 2, count - count // 2, start=1000, config=config)
    found = {}
    for precision in ("fp32", "bf16"):
        encoder = load_encoder("tiny", precision=precision)
        if precision == "bf16":
            encoder._products = PrepackedProducts()  # what wide encoders compute with
        kead = KeAD(encoder)
        result = kead.score(images, kead.fit(config.removesuffix("_synthetic"), normals))
        found[precision] = aurocs(result.maps, result.image_scores, masks, encoder.image_size)
    parts = [
        f"{what} {exact:.4f} and {close:.4f} ({close - exact:+.4f})"
        for what, exact, close in zip(("images", "pixels"), found["fp32"], found["bf16"], strict=True)
    ]
    return f"tiny, AUROC in fp32 and bf16, {count} images of {config}: {', '.join(parts)}"


if __name__ == "__main__":
    main()
