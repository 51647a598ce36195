"""What a detector costs: parameters, FLOPs, memory and images per second (the columns of the paper's Table 6)."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agssp.display import quieten_libraries
from agssp.stages import backbone_of
from baselines.backbones import Backbone
from benchmark import protocol as protocols
from benchmark.protocol import Finetune
from benchmark.record_schema import Record
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Tried in this order."""
REPEATS = 5
LEAST_SECONDS = 0.5
"""A measurement lasts at least so long, however fast one batch is."""
ENOUGH = 1.05
"""A batch of twice the images must bring this factor, or the search ends."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        backbone: The detector's backbone.
        detector: Its name.
        recipe: Gives the detector's settings.
        classes: Number of classes.
        image_size: Side of its input in pixels.
    """

    backbone: Backbone
    detector: str
    recipe: Finetune
    classes: int
    image_size: int


def of_record(record: Record, image_size: int | None) -> Subject:
    """Returns the detector of a record; its weights do not matter here.

    Args:
        record: The record.
        image_size: Side of its input; None for the one it was measured with.

    Raises:
        UserError: Its recipe is of another version.
    """
    try:
        recipe = Finetune.model_validate(record.inputs["recipe"])
    except (KeyError, ValidationError) as error:
        raise UserError(f"{record.cell.folder}: its recipe is of another version of this project.") from error
    backbone = backbone_of(f"{record.cell.backbone}:{record.cell.variant}", {})
    return Subject(
        backbone,
        record.cell.detector,
        recipe,
        len(record.dataset.classes),
        image_size or recipe.image_size,
    )


def of_names(backbone: str, detector: str, protocol: str, classes: int, image_size: int | None) -> Subject:
    """Returns a detector by its name.

    Args:
        backbone: `name` or `name:variant`; the protocol's variant where none is given.
        detector: Its name.
        protocol: Gives its settings.
        classes: Number of classes.
        image_size: Side of its input; None for the protocol's.

    Raises:
        UserError: Unknown names.
    """
    track = protocols.load(protocol)
    model = backbone_of(backbone, track.variants)
    recipe = track.recipe(model.name, detector)
    return Subject(model, detector, recipe, classes, image_size or recipe.image_size)


def measure(subject: Subject, device: str) -> dict[str, Any]:
    """Measures a detector: its network from pixels in memory to raw answers, float32, without suppression of doubles.

    A rate is the median of several measurements after a warm-up. The best batch is searched by doubling, until that
    brings no more than 5 percent or memory is full.

    Args:
        subject: What to measure; random weights, which change neither cost nor time of what is measured.
        device: `cpu` or `cuda`.

    Returns:
        JSON values: what was measured, `parameters`, `flops` of one image (a multiplication and an addition are two),
        `batch_1` and `best_batch` with images per second, milliseconds per batch and memory, device and threads.

    Raises:
        UserError: The image size is not a multiple of 32, or not even one image fits into memory.
    """
    import torch

    if subject.image_size % 32 or subject.image_size < 32:
        raise UserError(f"--image-size must be a multiple of 32, not {subject.image_size}.")
    if device == "cpu":
        # mmengine takes a GPU whenever it sees one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    quieten_libraries()
    from mmengine.logging import MMLogger

    from baselines.training.detector import new_detector
    from benchmark.environment import collect

    model: Any = new_detector(subject.detector, subject.backbone, subject.classes, subject.recipe)
    # Each tensor's initialisation would be a line of its log.
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    model.init_weights()
    model.eval()
    model.to(device)
    rates: list[dict[str, Any]] = []
    with torch.inference_mode():
        for size in BATCHES:
            try:
                rates.append(_rate(model, size, subject.image_size, device))
            except torch.OutOfMemoryError as error:
                if not rates:
                    raise UserError(
                        f"One image of {subject.image_size} px does not fit into memory."
                    ) from error
                break
            if size > 1 and rates[-1]["images_per_second"] < ENOUGH * rates[-2]["images_per_second"]:
                break
    return {
        "backbone": subject.backbone.id,
        "detector": subject.detector,
        "classes": subject.classes,
        "image_size": subject.image_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": count_flops(model, subject.image_size, device),
        "batch_1": rates[0],
        "best_batch": max(rates, key=lambda rate: rate["images_per_second"]),
        "tried_batches": [rate["batch"] for rate in rates],
        "precision": "float32",
        "device": torch.cuda.get_device_name() if device == "cuda" else collect("cpu").cpu,
        "threads": None if device == "cuda" else torch.get_num_threads(),
        "torch": torch.__version__,
    }


def count_flops(model: nn.Module, image_size: int, device: str = "cpu") -> int:
    """Returns the floating-point operations of one image, counted by torch as they happen.

    Those of convolutions and matrix products, of which a multiplication and an addition are two; the rest, such as
    norms and activations, is some percent and is not counted.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _forward(model, *_inputs(1, image_size, device))
    return int(counter.get_total_flops())


def _inputs(batch: int, side: int, device: str) -> tuple[Tensor, list[Any]]:
    """Returns images and what detectors want to know of them."""
    import torch
    from mmdet.structures import DetDataSample

    facts = {
        "img_shape": (side, side),
        "ori_shape": (side, side),
        "batch_input_shape": (side, side),
        "scale_factor": (1.0, 1.0),
        "pad_param": (0.0, 0.0, 0.0, 0.0),
    }
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, side, side, generator=generator).to(device)
    return images.contiguous(memory_format=torch.channels_last), [
        DetDataSample(metainfo=dict(facts)) for _ in range(batch)
    ]


def _forward(model: Any, images: Tensor, samples: list[Any]) -> None:
    model(images, samples, mode="tensor")


def _rate(model: Any, batch: int, side: int, device: str) -> dict[str, Any]:
    from baselines.training.resources import PeakMemory

    images, samples = _inputs(batch, side, device)
    with PeakMemory(interval=0.02) as memory:
        seconds = _median_seconds(lambda: _forward(model, images, samples), device)
    return {
        "batch": batch,
        "images_per_second": batch / seconds,
        "milliseconds": 1000 * seconds,
        "peak_ram_mib": memory.peak.ram_mib,
        "peak_gpu_mib": memory.peak.gpu_mib if device == "cuda" else None,
    }


def _median_seconds(run: Callable[[], None], device: str) -> float:
    """Returns the median time of one call over `REPEATS` measurements, after a warm-up."""
    import torch

    def timed(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            run()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / calls

    timed(2)
    calls = max(1, round(LEAST_SECONDS / REPEATS / max(timed(1), 1e-6)))
    return statistics.median(timed(calls) for _ in range(REPEATS))


def describe(found: dict[str, Any]) -> list[str]:
    """Returns a measurement as lines for people."""

    def rate(entry: dict[str, Any]) -> str:
        memory = entry["peak_gpu_mib"]
        where = (
            f"{memory:,.0f} MiB of GPU memory"
            if memory is not None
            else f"{entry['peak_ram_mib']:,.0f} MiB of RAM"
        )
        return f"{entry['images_per_second']:.1f} images/s, {entry['milliseconds']:.1f} ms a batch, {where}"

    threads = "" if found["threads"] is None else f", {found['threads']} threads"
    return [
        f"{found['detector']} with {found['backbone']}, {found['classes']} classes, {found['image_size']} px, "
        f"{found['precision']}",
        f"parameters  {found['parameters'] / 1e6:.2f} M",
        f"FLOPs       {found['flops'] / 1e9:.2f} G an image",
        f"batch 1     {rate(found['batch_1'])}",
        f"batch {found['best_batch']['batch']:<5} {rate(found['best_batch'])} (the best of {found['tried_batches']})",
        f"device      {found['device']}{threads}, torch {found['torch']}",
    ]
