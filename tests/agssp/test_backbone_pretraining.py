"""Backbone pretraining: it learns, freezes what it must, resumes bit for bit, and its weights fit our detectors."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_maps import map_row, store_maps
from mmengine.optim import OptimWrapper
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from agssp import backbone_pretraining as stage
from agssp import recipes
from agssp.map_store import open_maps
from baselines import backbones, weights
from baselines.pretraining import build_backbone
from baselines.training import precision
from baselines.training.hooks import TrainingDivergedError, TrainingEvent
from datasets_builders.errors import UserError

CSP = backbones.get("csp_darknet", "n")
VARIANTS = {"csp_darknet": "n", "resnet": "18", "swin": "nano", "lite0": "std"}
COMBINATIONS = [(family, method) for method, families in recipes.METHODS.items() for family in families]


def bright_spots(count: int = 16, size: int = 64) -> tuple[Any, list[Any]]:
    """Images of two categories (dark, light), each with a bright spot; their maps show the spot."""
    import datasets

    from datasets_builders.corpus.shards import corpus_features

    rng = np.random.default_rng(0)
    rows, maps = [], []
    y, x = np.mgrid[:size, :size]
    for index in range(count):
        centre = rng.uniform(8, size - 8, 2)
        spot = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 40)
        level = 40 + 60 * (index % 2)
        pixels = level + rng.normal(0, 5, (size, size)) + 120 * spot
        buffer = io.BytesIO()
        Image.fromarray(np.repeat(pixels.clip(0, 255).astype(np.uint8)[:, :, None], 3, 2)).save(buffer, "PNG")
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "image_id": f"spots/{index}",
                "category": index % 2,
                "source": "made",
                "licence": "none",
            }
        )
        grid = spot.reshape(16, size // 16, 16, size // 16).mean(axis=(1, 3))
        maps.append(map_row(f"spots/{index}", 0.1 + grid, (size, size)))
    return datasets.Dataset.from_list(rows, features=corpus_features(["dark", "light"])), maps


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    corpus, rows = bright_spots()
    return corpus, store_maps(tmp_path_factory.mktemp("spots") / "maps", rows).folder


def mock(family: str = "csp_darknet", method: str = "cls", **changes: Any) -> recipes.BackbonePretraining:
    settings = recipes.backbone_pretraining("mock-v1", family, method).model_dump()
    return recipes.BackbonePretraining.model_validate(settings | changes)


def train(
    folder: Path,
    spots: tuple[Any, Path],
    backbone: backbones.Backbone = CSP,
    method: str = "cls",
    *,
    guided: bool = True,
    recipe: recipes.BackbonePretraining | None = None,
    **changes: Any,
) -> stage.BackboneResult:
    folder.mkdir(exist_ok=True)
    corpus, maps = spots
    settings: dict[str, Any] = {
        "init": None,
        "seed": 0,
        "workers": 0,
        "on_event": lambda event: None,
    } | changes
    return stage.pretrain_backbone(
        backbone=backbone,
        method=method,
        corpus=corpus,
        maps=open_maps(maps) if guided else None,
        recipe=recipe or mock(backbone.name, method),
        folder=folder,
        **settings,
    )


def numbers(result: stage.BackboneResult) -> tuple[Any, ...]:
    """Everything that must not differ between two runs."""
    return result.curve, result.distillation_weight, result.weights.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, spots) -> stage.BackboneResult:
    return train(tmp_path_factory.mktemp("undisturbed") / "run", spots)


def initial_weights(path: Path, backbone: backbones.Backbone) -> weights.LocalWeights:
    torch.manual_seed(9)
    state = {f"backbone.{name}": value for name, value in build_backbone(backbone).state_dict().items()}
    weights.save(path, state, {"scope": "backbone"})
    return weights.resolve(path)


def test_its_weights_load_into_our_detector_name_by_name(undisturbed) -> None:
    from baselines.detectors import build_detector, detector_config

    detector = build_detector(
        detector_config(
            "yolov8",
            CSP,
            2,
            losses={"cls": 0.5, "box": 7.5, "dfl": 0.375},
            assigner={"topk": 10, "alpha": 0.5, "beta": 6.0},
            test={"score_threshold": 0.001, "nms_iou": 0.7, "max_detections": 300},
        )
    )
    state = load_file(undisturbed.weights)
    assert set(state) == {name for name in detector.state_dict() if name.startswith("backbone.")}
    report = weights.load(detector, weights.resolve(undisturbed.weights))
    assert report.share_of_backbone == 1
    assert not report.missing + report.unexpected + report.reinitialised
    for name, value in state.items():
        assert torch.equal(detector.state_dict()[name], value), name
    with safe_open(undisturbed.weights, "pt") as file:
        header = json.loads(file.metadata()["agssp_bench"])
    assert header["scope"] == "backbone"
    assert header["backbone"] == "csp_darknet:n"
    assert header["distillation_weight"] == undisturbed.distillation_weight


def test_the_result_tells_what_happened(undisturbed) -> None:
    assert [point["epoch"] for point in undisturbed.curve] == [1, 2]
    assert undisturbed.precision == precision.resolve(mock().mixed_precision)
    assert set(undisturbed.curve[0]["losses"]) == {"loss_task", "loss_distill", "loss"}
    for losses in (point["losses"] for point in undisturbed.curve):
        whole = losses["loss_task"] + undisturbed.distillation_weight * losses["loss_distill"]
        assert losses["loss"] == pytest.approx(whole, rel=1e-5)
    student = build_backbone(CSP)
    assert undisturbed.backbone_parameters == sum(p.numel() for p in student.parameters())
    # The classifier has two outputs on 256 averages.
    assert undisturbed.parameters == undisturbed.backbone_parameters + 2 * 256 + 2
    assert undisturbed.frozen == ()
    assert undisturbed.load_report is None
    assert undisturbed.seconds > 0
    assert not list(undisturbed.weights.parent.glob("progress*"))


def test_interrupted_then_called_again_it_ends_where_the_undisturbed_one_does(
    tmp_path, spots, undisturbed, monkeypatch
) -> None:
    from baselines.training import hooks

    monkeypatch.setattr(hooks, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(hooks, "STORE_SECONDS", 0.0)

    def interrupt(event: TrainingEvent) -> None:
        if event.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", spots, on_event=interrupt)
    assert not (tmp_path / "run" / stage.WEIGHTS).exists()
    result = train(tmp_path / "run", spots)
    assert result.resumes == 1
    assert numbers(result) == numbers(undisturbed)


KILL = """
import os, signal, sys
from pathlib import Path
import datasets
sys.path[:0] = [{tests!r}, {root!r}]
import baselines.training.hooks as hooks
from agssp import backbone_pretraining, recipes
from baselines import backbones
from test_backbone_pretraining import mock, train

def on_event(event):
    if event.iteration == {when}:
        os.kill(os.getpid(), signal.SIGKILL)

hooks.REPORT_SECONDS = hooks.STORE_SECONDS = 0.0
backbone = backbones.get({family!r}, {variant!r})
train(Path({folder!r}), (datasets.load_from_disk({corpus!r}), Path({maps!r})), backbone, {method!r},
      recipe=mock({family!r}, {method!r}, epochs=3, device_batch_size=4), on_event=on_event)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), [("csp_darknet", "mocov3"), ("swin", "simmim")])
def test_killed_it_ends_where_the_undisturbed_one_does(tmp_path, spots, python, family, method) -> None:
    """With two batches to a step, momentum encoder and masks included."""
    corpus, maps = spots
    corpus.save_to_disk(str(tmp_path / "corpus"))
    backbone = backbones.get(family, VARIANTS[family])
    recipe = mock(family, method, epochs=3, device_batch_size=4)
    whole = train(tmp_path / "whole", spots, backbone, method, recipe=recipe)
    script = textwrap.dedent(KILL).format(
        tests=str(Path(__file__).parent),
        root=str(Path(__file__).parents[2]),
        when=7,
        folder=str(tmp_path / "run"),
        corpus=str(tmp_path / "corpus"),
        maps=str(maps),
        family=family,
        variant=VARIANTS[family],
        method=method,
    )
    killed = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    result = train(tmp_path / "run", spots, backbone, method, recipe=recipe)
    assert result.resumes == 1
    assert numbers(result) == numbers(whole)


def test_the_momentum_encoder_moves_once_a_step_of_the_optimiser(tmp_path, spots, monkeypatch) -> None:
    """However many passes a step accumulates (four steps here; the first one copies the student)."""
    from mmpretrain.models.utils import CosineEMA

    moves: list[int] = []
    follow = CosineEMA.avg_func

    def counted(self, averaged, source, steps) -> None:
        if averaged.data_ptr() == next(self.module.parameters()).data_ptr():
            moves.append(int(steps))
        follow(self, averaged, source, steps)

    monkeypatch.setattr(CosineEMA, "avg_func", counted)
    for passes in (1, 2):
        recipe = mock("csp_darknet", "mocov3", epochs=2, device_batch_size=8 // passes)
        steps = recipe.plan(len(spots[0])).steps
        moves.clear()
        train(tmp_path / str(passes), spots, CSP, "mocov3", recipe=recipe)
        assert moves == [passes * step for step in range(1, steps)]


def test_frozen_stages_stay_and_the_rest_learns(tmp_path, spots) -> None:
    init = initial_weights(tmp_path / "init.safetensors", CSP)
    result = train(tmp_path / "run", spots, init=init)
    before, after = load_file(init.path), load_file(result.weights)
    frozen = ("backbone.stem.", "backbone.stage1.", "backbone.stage2.")
    for name in before:
        if name.startswith(frozen):
            assert torch.equal(before[name], after[name]), f"{name} is frozen, its statistics too"
        elif name.endswith(("conv.weight", "running_mean")):
            assert not torch.equal(before[name], after[name]), name
    assert all(f"backbone.{name}".startswith(frozen) for name in result.frozen)
    parameters = {n: v for n, v in before.items() if not n.endswith(("mean", "var", "tracked"))}
    learning = sum(v.numel() for n, v in parameters.items() if not n.startswith(frozen))
    assert result.backbone_parameters == learning
    assert result.load_report is not None
    assert result.load_report.share_of_backbone == 1


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("family", ["csp_darknet", "swin"])
def test_gradients_reach_unfrozen_stages_alone(tmp_path, family: str, guided: bool) -> None:
    backbone = backbones.get(family, VARIANTS[family])
    init = initial_weights(tmp_path / "init.safetensors", backbone)
    model = stage.build_model(backbone, "cls", 2, mock(family), init=init, guided=guided).guided
    model.train()
    batch = {
        "views": [torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)],
        "labels": torch.tensor([0, 1]),
    }
    model(**batch, maps=torch.rand(2, 64, 64))["loss"].backward()
    reached = {name for name, p in model.task.student.named_parameters() if p.grad is not None}
    lower = {
        "csp_darknet": ("stem.", "stage1.", "stage2."),
        "swin": ("patch_embed.", "stages.0.", "stages.1.", "norm1.", "norm2."),
    }[family]
    assert reached == {n for n, _ in model.task.student.named_parameters() if not n.startswith(lower)}


@pytest.mark.slow
def test_it_learns_the_task_and_to_look_where_the_maps_point(tmp_path, spots) -> None:
    recipe = mock(epochs=30, optimizer={"type": "AdamW", "lr": 0.003, "weight_decay": 0.05})
    result = train(tmp_path / "run", spots, recipe=recipe)
    first, last = result.curve[0]["losses"], result.curve[-1]["losses"]
    assert last["loss_task"] < 0.35 < 0.6 < first["loss_task"]
    assert last["loss_distill"] < 0.5 * first["loss_distill"]


@pytest.mark.slow
def test_accumulated_batches_are_one_step(tmp_path, spots) -> None:
    """Swin has no batch norm: two half batches must give the gradients of the whole one."""
    swin = backbones.get("swin", "nano")
    sgd = {"type": "SGD", "lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    whole, halves = (
        train(
            tmp_path / str(size),
            spots,
            swin,
            guided=False,
            recipe=mock("swin", "cls", device_batch_size=size, optimizer=sgd, mixed_precision=False),
        )
        for size in (8, 4)
    )
    ours, theirs = load_file(halves.weights), load_file(whole.weights)
    start = load_file(train(tmp_path / "none", spots, swin, guided=False, recipe=mock(
        "swin", "cls", epochs=1, optimizer={**sgd, "lr": 1e-12}, mixed_precision=False)).weights)  # fmt: skip
    moved = max(float((theirs[n] - start[n]).abs().max()) for n in theirs)
    for name in theirs:
        if theirs[name].is_floating_point():
            assert float((ours[name] - theirs[name]).abs().max()) < 1e-3 * moved, name
    assert [p["losses"]["loss_task"] for p in halves.curve] == pytest.approx(
        [p["losses"]["loss_task"] for p in whole.curve], rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), COMBINATIONS)
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "plain"])
def test_every_combination_trains_to_the_end(tmp_path, spots, family: str, method: str, guided: bool) -> None:
    backbone = backbones.get(family, VARIANTS[family])
    result = train(
        tmp_path / "run", spots, backbone, method, guided=guided, recipe=mock(family, method, epochs=1)
    )
    assert all(math.isfinite(value) for value in result.curve[-1]["losses"].values())
    assert (result.distillation_weight is not None) == guided
    fresh = build_backbone(backbone)
    assert weights.load(fresh, weights.resolve(result.weights)).share_of_backbone == 1


def test_mixed_precision_is_close_to_float32() -> None:
    """Losses agree to bfloat16's three digits; gradients point the same way and are float32."""
    torch.manual_seed(0)
    model = stage.build_model(CSP, "cls", 2, mock(), init=None, guided=True).guided
    batch = {
        "views": [torch.randint(0, 255, (8, 3, 64, 64), dtype=torch.uint8)],
        "labels": torch.arange(8) % 2,
        "maps": torch.rand(8, 64, 64),
    }
    measured = []
    for kind in (OptimWrapper, stage.Bfloat16Wrapper):
        wrapper = kind(torch.optim.SGD(model.parameters(), lr=1.0))
        with wrapper.optim_context(model):
            losses = model(**batch)
        model.zero_grad()
        losses["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        measured.append((float(losses["loss_task"]), float(losses["loss_distill"]), gradient))
    (task, distill, exact), (task16, distill16, rounded) = measured
    assert task16 == pytest.approx(task, rel=0.02)
    assert distill16 == pytest.approx(distill, rel=0.05)
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.98


@pytest.mark.slow
def test_workers_change_nothing(tmp_path, spots, undisturbed, monkeypatch) -> None:
    swin = backbones.get("swin", "nano")
    # One thread computes in both cases: sums depend on the number of threads.
    monkeypatch.setattr(stage, "set_threads", lambda workers: torch.set_num_threads(1))
    alone, helped = (
        train(tmp_path / str(workers), spots, swin, "simmim", workers=workers) for workers in (0, 2)
    )
    assert [p["losses"] for p in alone.curve] == [pytest.approx(p["losses"], rel=1e-5) for p in helped.curve]


def test_a_diverging_training_is_an_error(tmp_path, spots) -> None:
    wild = {"type": "SGD", "lr": 1e30, "weight_decay": 0.0, "momentum": 0.9}
    with pytest.raises(TrainingDivergedError, match="not a number"):
        train(tmp_path / "run", spots, guided=False, recipe=mock(optimizer=wild, clip_grad_norm=None))
    assert not (tmp_path / "run" / stage.WEIGHTS).exists()


def test_what_does_not_fit_is_refused(tmp_path, spots) -> None:
    corpus, maps = spots
    with pytest.raises(UserError, match="simmim cannot pretrain csp_darknet"):
        train(tmp_path / "a", spots, method="simmim", recipe=mock())
    with pytest.raises(UserError, match=r"mocov3 sees 2 view\(s\)"):
        train(tmp_path / "b", spots, method="mocov3", recipe=mock())
    with pytest.raises(UserError, match="no images"):
        train(tmp_path / "c", (corpus.select([]), maps))
    other = initial_weights(tmp_path / "other.safetensors", backbones.get("csp_darknet", "s"))
    with pytest.raises(UserError, match="nothing was loaded"):
        train(tmp_path / "d", spots, init=other)


# Backbones at the paper's size: trainable parameters of the backbone with two stages frozen, counted by hand
# (a convolution k x k from a to b channels has k*k*a*b weights, a norm of c channels 2c).
def bottleneck(inner: int, outer: int, before: int) -> int:
    sizes = before * inner + 9 * inner * inner + inner * outer + 2 * (inner + inner + outer)
    return sizes + (before * outer + 2 * outer if before != outer else 0)


def resnet50_upper() -> int:
    third = bottleneck(256, 1024, 512) + 5 * bottleneck(256, 1024, 1024)
    return third + bottleneck(512, 2048, 1024) + 2 * bottleneck(512, 2048, 2048)


def swin_block(c: int, heads: int) -> int:
    attention = 3 * c * c + 3 * c + c * c + c + 13 * 13 * heads
    return attention + 2 * 4 * c * c + 4 * c + c + 4 * c


def swin_base_upper() -> int:
    merging = 2 * 4 * 512 + 4 * 512 * 1024
    return 18 * swin_block(512, 16) + merging + 2 * swin_block(1024, 32) + 2 * 1024


def conv(kernel: int, a: int, b: int) -> int:
    return kernel * kernel * a * b + 2 * b


def csp_stage(before: int, c: int, blocks: int) -> int:
    half = c // 2
    inside = conv(1, c, c) + blocks * 2 * conv(3, half, half) + conv(1, (2 + blocks) * half, c)
    return conv(3, before, c) + inside


def csp_s_upper() -> int:
    pooling = conv(1, 512, 256) + conv(1, 1024, 512)
    return csp_stage(128, 256, 2) + csp_stage(256, 512, 1) + pooling


PAPER = [
    ("csp_darknet", "s", "cls", csp_s_upper()),
    ("resnet", "50", "cls", resnet50_upper()),
    ("resnet", "50", "mocov3", resnet50_upper()),
    ("swin", "base", "cls", swin_base_upper()),
    ("swin", "base", "simmim", swin_base_upper()),
]
LOWER = {
    "csp_darknet": ("stem.", "stage1.", "stage2."),
    "resnet": ("conv1.", "bn1.", "layer1.", "layer2."),
    "swin": ("patch_embed.", "stages.0.", "stages.1.", "norm1."),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "variant", "method", "trainable"), PAPER)
def test_a_step_of_every_backbone_and_method_at_the_papers_size(
    tmp_path, family: str, variant: str, method: str, trainable: int
) -> None:
    from mmengine.logging import MessageHub

    MessageHub.get_current_instance().update_info("max_iters", 10)
    backbone = backbones.get(family, variant)
    recipe = recipes.backbone_pretraining("paper-v1", family, method)
    init = initial_weights(tmp_path / "init.safetensors", backbone)
    for guided in (True, False):
        built = stage.build_model(backbone, method, 61, recipe, init=init, guided=guided)
        model, student = built.guided, built.guided.task.student
        model.train()
        batch = {
            "views": [torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8) for _ in recipe.views],
            "labels": torch.tensor([3, 60]),
            "masks": torch.randint(0, 2, (2, 16, 16)) if method == "simmim" else None,
            "maps": torch.rand(2, 64, 64) if guided else None,
        }
        before = {name: value.clone() for name, value in student.state_dict().items()}
        one_batch = dataclasses.replace(recipe.plan(120_000), accumulation=1)
        optimizer = stage._optim_wrapper(model, recipe, one_batch)
        losses = model.train_step(batch, optimizer)
        assert math.isfinite(losses["loss"].item())
        frozen = {name for name, _ in student.named_parameters() if name.startswith(LOWER[family])}
        assert set(built.frozen) == frozen
        # norm2 of a Swin is neither frozen nor reached: no method looks at that output.
        learning = {
            n: p for n, p in student.named_parameters() if n not in frozen and not n.startswith("norm2.")
        }
        assert {n for n, p in student.named_parameters() if p.requires_grad} == set(learning)
        assert sum(p.numel() for p in learning.values()) == trainable
        after = student.state_dict()
        assert all(torch.equal(before[n], after[n]) for n in after if n.startswith(LOWER[family]))
        assert not any(
            torch.equal(before[n], after[n]) for n in learning if n.endswith("weight") and after[n].ndim > 1
        )
        held = [id(p) for group in optimizer.optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


RANK = """
import os, sys
from pathlib import Path
import datasets, torch
sys.path[:0] = [{tests!r}, {root!r}]
from test_backbone_pretraining import mock, train
torch.set_num_threads(1)
import json
result = train(Path({folder!r}), (datasets.load_from_disk({corpus!r}), Path({maps!r})))
own = result.curve[0]["losses"]
Path({folder!r}, f"rank-{{os.environ['RANK']}}.json").write_text(json.dumps([result.distillation_weight, result.curve]))
"""


@pytest.mark.slow
def test_two_ranks_train_one_model_with_one_weight(tmp_path, spots, python) -> None:
    corpus, maps = spots
    corpus.save_to_disk(str(tmp_path / "corpus"))
    script = textwrap.dedent(RANK).format(
        tests=str(Path(__file__).parent),
        root=str(Path(__file__).parents[2]),
        folder=str(tmp_path / "run"),
        corpus=str(tmp_path / "corpus"),
        maps=str(maps),
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "rank.py").write_text(script)
    ran = subprocess.run(
        [
            python,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(tmp_path / "rank.py"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    (one, curve), (other, other_curve) = (
        json.loads((tmp_path / "run" / f"rank-{rank}.json").read_text()) for rank in range(2)
    )
    assert one == other > 0
    assert curve[0]["losses"] != other_curve[0]["losses"], "each rank sees its own images"
    assert len(curve) == 2
    assert (
        weights.load(build_backbone(CSP), weights.resolve(tmp_path / "run" / stage.WEIGHTS)).share_of_backbone
        == 1
    )
