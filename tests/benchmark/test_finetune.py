"""Finetuning: it learns, it is deterministic, and a killed run ends where an undisturbed one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from baselines import backbones
from baselines.training import hooks
from baselines.training.hooks import TrainingDivergedError, TrainingEvent
from baselines.training.optim import optim_wrapper
from benchmark import finetune as stage
from benchmark import protocol

NANO = backbones.get("csp_darknet", "n")


def tiny_recipe(**changes) -> protocol.Finetune:
    settings = protocol.load("mock-v1").finetune.model_dump()
    settings |= {"batch_size": 8, "epochs": 4, "validation": {"every_epochs": 2}}
    return protocol.Finetune.model_validate(settings | changes)


def train(folder: Path, train_split, validation_split, recipe=None, seed=0, on_event=lambda event: None):
    folder.mkdir(exist_ok=True)
    return stage.finetune(
        backbone=NANO,
        detector="yolov8",
        recipe=recipe or tiny_recipe(),
        train=train_split,
        validation=validation_split,
        seed=seed,
        folder=folder,
        workers=0,
        on_event=on_event,
    )


def numbers(result: stage.FinetuneResult) -> dict:
    """Everything that must not differ between two runs of one cell."""
    return {
        "curve": result.curve,
        "last": (result.last.epoch, result.last.metrics, result.last.detections.sha256()),
        "best": (result.best.epoch, result.best.metrics, result.best.detections.sha256()),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_train, tiny_validation) -> stage.FinetuneResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "STORE_SECONDS", 0.0)  # a training so short is not stored after its last epoch
        return train(tmp_path_factory.mktemp("undisturbed"), tiny_train, tiny_validation)


@pytest.mark.slow
def test_same_seed_same_number_other_seed_other_number(
    tmp_path, undisturbed, tiny_train, tiny_validation
) -> None:
    again = train(tmp_path / "again", tiny_train, tiny_validation)
    assert numbers(again) == numbers(undisturbed)
    ours, theirs = load_file(again.last.weights), load_file(undisturbed.last.weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    other = train(tmp_path / "other", tiny_train, tiny_validation, seed=1)
    assert numbers(other) != numbers(undisturbed)


KILL = """
import os, signal, sys
from pathlib import Path
import datasets
sys.path.insert(0, {tests!r})
from test_finetune import train

def on_event(event):
    if (event.iteration, event.validating) == {when!r}:
        os.kill(os.getpid(), signal.SIGKILL)

import baselines.training.hooks as hooks
hooks.REPORT_SECONDS = hooks.STORE_SECONDS = 0.0  # every iteration is an occasion to die, every epoch is stored
train(Path({folder!r}), datasets.load_from_disk({train!r}), datasets.load_from_disk({validation!r}), on_event=on_event)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "lost"),
    [((1, False), 1), ((5, False), 1), ((4, True), 1), ((8, True), 1)],
    ids=["in the first epoch", "in the third epoch", "in a validation", "in the last validation"],
)
def test_killed_training_ends_where_the_undisturbed_one_does(
    tmp_path, undisturbed, tiny_train, tiny_validation, python, when, lost
) -> None:
    tiny_train.save_to_disk(str(tmp_path / "train"))
    tiny_validation.save_to_disk(str(tmp_path / "validation"))
    folder = tmp_path / "run"
    script = textwrap.dedent(KILL).format(
        tests=str(Path(__file__).parent),
        when=when,
        folder=str(folder),
        train=str(tmp_path / "train"),
        validation=str(tmp_path / "validation"),
    )
    killed = subprocess.run(
        [python, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    result = train(folder, tiny_train, tiny_validation)
    assert numbers(result) == numbers(undisturbed)
    assert result.resumes == (0 if when[0] == 1 else 1)


@pytest.mark.slow
def test_ctrl_c_then_the_same_call_goes_on(tmp_path, undisturbed, tiny_train, tiny_validation) -> None:
    def interrupt(event: TrainingEvent) -> None:
        if event.validating and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny_train, tiny_validation, on_event=interrupt)
    assert numbers(train(tmp_path / "run", tiny_train, tiny_validation)) == numbers(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_a_damaged_file_of_an_unfinished_training_is_never_used(
    tmp_path, caplog, undisturbed, tiny_train, tiny_validation, suffix
) -> None:
    def interrupt(event: TrainingEvent) -> None:
        if event.iteration >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny_train, tiny_validation, on_event=interrupt)
    path = next((tmp_path / "run").glob(f"epoch-2{suffix}"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    result = train(tmp_path / "run", tiny_train, tiny_validation)
    assert "starts anew" in caplog.text
    assert result.resumes == 0
    assert numbers(result) == numbers(undisturbed)


@pytest.mark.slow
def test_finished_training_is_read_not_repeated(undisturbed, tiny_train, tiny_validation) -> None:
    events: list[TrainingEvent] = []
    again = train(undisturbed.last.weights.parent, tiny_train, tiny_validation, on_event=events.append)
    assert numbers(again) == numbers(undisturbed)
    assert not [event for event in events if not event.validating]


@pytest.mark.slow
def test_until_its_record_is_stored_a_short_training_can_be_repeated(
    tmp_path, undisturbed, tiny_train, tiny_validation
) -> None:
    first = train(tmp_path / "run", tiny_train, tiny_validation)
    again = train(tmp_path / "run", tiny_train, tiny_validation)
    assert (first.resumes, again.resumes) == (0, 1)
    assert numbers(again) == numbers(undisturbed)
    stage.finish(tmp_path / "run", again)
    kept = {f"epoch-{outcome.epoch}" for outcome in (again.last, again.best)}
    assert {path.stem for path in (tmp_path / "run").glob("epoch-*")} == kept
    assert again.best.weights.is_file()


@pytest.mark.slow
def test_it_learns(tmp_path, tiny_train, tiny_validation) -> None:
    adam = {"type": "AdamW", "lr": 0.005, "weight_decay": 0.05}
    recipe = tiny_recipe(epochs=60, optimizer=adam, validation={"every_epochs": 15})
    result = train(tmp_path / "run", tiny_train, tiny_validation, recipe)
    measured = [point["map50"] for point in result.curve if point["map50"] is not None]
    assert len(measured) == 4
    assert measured[0] < 20 < 40 < measured[-1]
    assert result.last.metrics.map50 == measured[-1]
    assert result.best.metrics.map50 == max(measured)


@pytest.mark.slow
def test_a_diverging_training_is_an_error_not_a_number(tmp_path, tiny_train, tiny_validation) -> None:
    wild = {"type": "SGD", "lr": 1e30, "weight_decay": 0.0, "momentum": 0.9, "nesterov": False}
    recipe = tiny_recipe(optimizer=wild, clip_grad_norm=1e30, warmup={
        "epochs": 0, "min_iterations": 0, "bias_lr": 0.0, "momentum": 0.8})  # fmt: skip
    with pytest.raises(TrainingDivergedError, match="not a number"):
        train(tmp_path / "run", tiny_train, tiny_validation, recipe)


@pytest.mark.parametrize(("name", "variant"), [("csp_darknet", "n"), ("resnet", "18"), ("swin", "nano")])
def test_optimizer_holds_every_parameter_once_and_decays_weights_alone(name: str, variant: str) -> None:
    from baselines.detectors import build_detector, detector_config

    recipe = tiny_recipe()
    settings = recipe.model_dump()
    model = build_detector(
        detector_config(
            "yolov8",
            backbones.get(name, variant),
            2,
            losses=settings["losses"],
            assigner=settings["assigner"],
            test=settings["test"],
        )
    )
    groups = optim_wrapper(model, recipe).optimizer.param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        if id(parameter) in decayed:
            assert parameter.ndim >= 2, parameter_name
            assert "relative_position_bias_table" not in parameter_name
        elif parameter.requires_grad and parameter.ndim >= 2:
            assert "relative_position_bias_table" in parameter_name


def test_threads_never_exceed_the_cores_nor_what_the_user_allows(monkeypatch) -> None:
    from baselines.training.resources import default_workers, set_threads
    from datasets_builders.machine import cores

    for device in ("cpu", "cuda"):
        workers = default_workers(device)
        set_threads(workers)
        assert torch.get_num_threads() + workers <= max(cores(), 1) or torch.get_num_threads() == 1
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    set_threads(0)
    assert torch.get_num_threads() == cores() == len(os.sched_getaffinity(0))
    for wish, threads in (("1", 1), ("999", cores()), ("0", cores()), ("many", cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
        set_threads(0)
        assert torch.get_num_threads() == threads
