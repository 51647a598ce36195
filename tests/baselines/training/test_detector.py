"""A detector's training really begins with the weights it was given."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from baselines import backbones, openmmlab, weights

openmmlab.activate()

from baselines.training.data import train_loader
from baselines.training.detector import (
    InitialWeights,
    detector_runner,
    moving_average,
    new_detector,
    prepare_process,
)
from baselines.training.hooks import EpochRecorder, History
from baselines.training.recipes import DetectorTraining
from benchmark import protocol


def still_recipe() -> DetectorTraining:
    """One epoch at a learning rate so small that nothing moves."""
    settings = protocol.load("mock-v1").finetune.model_dump()
    settings |= {
        "epochs": 1,
        "batch_size": 8,
        "optimizer": {"type": "SGD", "lr": 1e-12, "weight_decay": 0.0},
        "warmup": {"epochs": 0, "min_iterations": 0, "bias_lr": 0.0, "momentum": 0.0},
    }
    return protocol.Finetune.model_validate(settings)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["backbone", "detector"])
@pytest.mark.parametrize("name", ["csp_darknet:n", "resnet:18", "swin:nano"])
def test_training_begins_with_the_given_weights(tmp_path, tiny_train, name, scope) -> None:
    backbone = backbones.get(*name.split(":"))
    recipe = still_recipe()
    prepare_process(1, 0)
    donor = new_detector("yolov8", backbone, 2, recipe)
    donor.init_weights()
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    weights.save(tmp_path / "donor.safetensors", donor.state_dict(), {"scope": "detector"})
    prepare_process(0, 0)
    model = new_detector("yolov8", backbone, 2, recipe)
    ema = moving_average(recipe)
    hook = InitialWeights(weights.resolve(tmp_path / "donor.safetensors"), scope)
    runner = detector_runner(
        model=model,
        recipe=recipe,
        length=recipe.length(len(tiny_train)),
        loader=train_loader(tiny_train, recipe, workers=0, seed=0),
        folder=tmp_path / "run",
        seed=0,
        ema_hook=ema,
        recorder=EpochRecorder(tmp_path / "run", 0, History(), lambda event: None, ema),
        hooks=[hook],
    )
    runner.train()
    assert hook.report is not None
    assert hook.report.share_of_backbone == 1.0
    given = load_file(tmp_path / "donor.safetensors")
    for state in (dict(model.named_parameters()), dict(ema.ema_model.module.named_parameters())):
        for key, value in state.items():
            equal = torch.allclose(value, given[key], rtol=1e-5, atol=1e-6)
            # Biases begin with their own warm-up rate, zero here; neck and head stay random with a backbone alone.
            expected = scope == "detector" or key.startswith("backbone.")
            if expected or value.ndim > 1:
                assert equal == expected, key
