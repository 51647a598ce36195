"""Measures finetuning under `mini-v1` against mmyolo's own configuration of YOLOv8-n with the same recipe.

    python tests/performance/bench_finetune.py [--iterations 100] [--rounds 3]

Both train the same network with the same optimiser, batch, image size and augmentation on the same 400 procedural
images. mmyolo reads the exported files, with two loader processes and, as a further contestant, without any; pipeline,
moving average and loss are as its configuration file has them. Contestants run in turns, each in a process of its own;
the first iterations are not counted. Images a second are medians over the rounds, by the clock and by processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

DATASET = "casting_billet_synthetic"
WARM = 10
CONTESTANTS = {"ours": "ours", "mmyolo": "mmyolo, 2 loader processes", "mmyolo0": "mmyolo, none"}


def cpu_seconds() -> float:
    """Returns the processor time of this process and its living children."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [me, *me.children(recursive=True)])


class Clock:
    """Notes wall and processor time after the warm-up and at the end."""

    def __init__(self, iterations: int, batch: int) -> None:
        self.iterations, self.batch, self.marks = iterations, batch, {}

    def tick(self, done: int) -> None:
        """Told after every iteration."""
        if done in (WARM, self.iterations):
            self.marks[done] = time.perf_counter(), cpu_seconds()

    def result(self) -> dict[str, float]:
        """Returns images a second by the clock and by processor time."""
        (wall, cpu), (wall_end, cpu_end) = self.marks[WARM], self.marks[self.iterations]
        images = (self.iterations - WARM) * self.batch
        return {"wall": images / (wall_end - wall), "cpu": images / (cpu_end - cpu)}


def ours(iterations: int, folder: Path) -> dict[str, float]:
    """Trains as a cell does, without a validation."""
    import datasets_builders
    from baselines import backbones
    from baselines.training.data import train_loader
    from baselines.training.detector import detector_runner, moving_average, new_detector, prepare_process
    from baselines.training.hooks import EpochRecorder, History
    from benchmark import protocol

    recipe = (
        protocol.load("mini-v1").recipe("csp_darknet", "yolov8").model_copy(update={"iterations": iterations})
    )
    train = datasets_builders.load(DATASET, "train")
    prepare_process(0, 0)
    model = new_detector("yolov8", backbones.get("csp_darknet", "n"), 6, recipe)
    clock = Clock(iterations, recipe.batch_size)
    ema = moving_average(recipe)
    recorder = EpochRecorder(folder, 0, History(), lambda event: None, ema)
    after = recorder.after_train_iter

    def after_train_iter(runner: Any, *args: Any, **named: Any) -> None:
        after(runner, *args, **named)
        clock.tick(runner.iter + 1)

    recorder.after_train_iter = after_train_iter  # type: ignore[method-assign]
    detector_runner(
        model=model,
        recipe=recipe,
        length=recipe.length(len(train)),
        loader=train_loader(train, recipe, workers=0, seed=0),
        folder=folder,
        seed=0,
        ema_hook=ema,
        recorder=recorder,
    ).train()
    return clock.result()


def mmyolo(iterations: int, folder: Path, exported: Path, workers: int) -> dict[str, float]:
    """Trains by mmyolo's configuration file, with the recipe's settings in their places."""
    from baselines import openmmlab

    openmmlab.activate()
    import mmyolo as package
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from benchmark import protocol

    recipe = protocol.load("mini-v1").recipe("csp_darknet", "yolov8")
    clock = Clock(iterations, recipe.batch_size)

    class Ticking(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner: Any, *args: Any, **named: Any) -> None:
            clock.tick(runner.iter + 1)

    name = "yolov8_n_syncbn_fast_8xb16-500e_coco.py"
    config = Config.fromfile(Path(package.__file__).parent / ".mim/configs/yolov8" / name)
    side = (recipe.image_size, recipe.image_size)
    epochs = -(-iterations // (400 // recipe.batch_size))
    load = list(config.pre_transform)
    affine, mosaic = dict(config.train_pipeline[3]), dict(config.train_pipeline[2])
    plain = [dict(step) for step in config.train_pipeline_stage2[2:5]]
    plain[0]["scale"] = plain[1]["scale"] = side
    mosaic["img_scale"] = side
    affine["border"] = (-side[0] // 2, -side[1] // 2)
    # Albu needs a further package for transforms of probability 0.01.
    last = [step for step in config.last_transform if step["type"] != "mmdet.Albu"]
    mixed = {
        "type": "mmcv.RandomChoice",
        "transforms": [[mosaic, affine], plain],
        "prob": [recipe.augmentation.mosaic, 1 - recipe.augmentation.mosaic],
    }
    classes = json.loads((exported / "annotations" / "instances_train.json").read_text())["categories"]
    optimizer = recipe.optimizer
    changes = {
        "work_dir": str(folder),
        "model.bbox_head.head_module.num_classes": len(classes),
        "model.train_cfg.assigner.num_classes": len(classes),
        "train_dataloader.batch_size": recipe.batch_size,
        "train_dataloader.num_workers": workers,
        "train_dataloader.persistent_workers": workers > 0,
        "train_dataloader.pin_memory": False,
        "train_dataloader.dataset.data_root": str(exported),
        "train_dataloader.dataset.ann_file": "annotations/instances_train.json",
        "train_dataloader.dataset.data_prefix": {"img": "train/"},
        "train_dataloader.dataset.metainfo": {"classes": [entry["name"] for entry in classes]},
        "train_dataloader.dataset.pipeline": [*load, mixed, *last],
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": epochs},
        "log_level": "ERROR",
    }
    config.merge_from_dict(changes)
    # Without YOLO's grouping, which wants SGD.
    config["optim_wrapper"] = {
        "type": "OptimWrapper",
        "clip_grad": {"max_norm": recipe.clip_grad_norm},
        "optimizer": {"type": optimizer.type, "lr": optimizer.lr, "weight_decay": optimizer.weight_decay},
    }
    config.train_dataloader.dataset.pipeline = changes["train_dataloader.dataset.pipeline"]
    for unused in (
        "val_dataloader",
        "val_cfg",
        "val_evaluator",
        "test_dataloader",
        "test_cfg",
        "test_evaluator",
    ):
        config[unused] = None
    config.custom_hooks = [
        {**config.custom_hooks[0], "momentum": recipe.ema.momentum, "gamma": recipe.ema.gamma}
    ]
    config.default_hooks.checkpoint = None
    config.default_hooks.param_scheduler.max_epochs = epochs
    runner = Runner.from_cfg(config)
    runner.register_hook(Ticking())
    runner.train()
    return clock.result()


def main() -> None:
    """Runs all contestants in turns and prints the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--exported", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        with tempfile.TemporaryDirectory() as folder:
            if options.only == "ours":
                result = ours(options.iterations, Path(folder))
            else:
                result = mmyolo(
                    options.iterations, Path(folder), options.exported, 2 * (options.only == "mmyolo")
                )
        print(json.dumps(result))
        return

    from datasets_builders import prepared
    from datasets_builders.exports import export

    prepared.prepare(DATASET)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "coco"
        export(DATASET, "coco", exported)
        for _ in range(options.rounds):
            for name in CONTESTANTS:
                # As `python -m benchmark` sets it for itself, and mmyolo does not.
                environment = os.environ | ({"GOMP_SPINCOUNT": "10000"} if name == "ours" else {})
                words = ["--only", name, "--exported", str(exported), "--iterations", str(options.iterations)]
                done = subprocess.run(
                    [sys.executable, __file__, *words],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                figures[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        name: {kind: statistics.median(turn[kind] for turn in turns) for kind in ("wall", "cpu")}
        for name, turns in figures.items()
    }
    print(f"CSPDarknet n, mini-v1, {options.iterations - WARM} iterations, median of {options.rounds} rounds")
    for name, title in CONTESTANTS.items():
        wall, cpu = medians[name]["wall"], medians[name]["cpu"]
        print(
            f"{title:28} {wall:6.1f} images/s {cpu:6.1f} images a CPU second"
            f"   ours: {medians['ours']['wall'] / wall:.2f} x, {medians['ours']['cpu'] / cpu:.2f} x in CPU time"
        )


if __name__ == "__main__":
    main()
