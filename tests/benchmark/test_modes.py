"""Modes: what each begins with, what cannot be, and the whole chain from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import benchmark

from baselines import backbones, weights
from benchmark.modes import Choice, start
from datasets_builders.errors import UserError

NANO = backbones.get("csp_darknet", "n")


def begin(choice: Choice, backbone: backbones.Backbone = NANO, detector: str = "yolov8"):
    return start(choice, backbone, detector, recipe_set="mock-v1", device="cpu")


def test_scratch_begins_with_nothing() -> None:
    found = begin(Choice("scratch"))
    assert (found.scope, found.weights, found.stages, found.identity()) == (None, None, (), {})


def test_coco_takes_the_whole_detector_and_imagenet_the_backbone(tmp_path) -> None:
    import torch

    file = tmp_path / "mine.safetensors"
    weights.save(file, {"backbone.stem.conv.weight": torch.zeros(2)}, {"scope": "detector"})
    coco, imagenet = (begin(Choice(mode, weights=str(file))) for mode in ("coco", "imagenet"))
    assert (coco.scope, imagenet.scope) == ("detector", "backbone")
    assert coco.weights == imagenet.weights == weights.resolve(file)
    assert coco.identity() != imagenet.identity()


def test_custom_takes_what_its_file_says_of_itself(tmp_path) -> None:
    import torch

    for scope in ("backbone", "detector"):
        file = tmp_path / f"{scope}.safetensors"
        weights.save(file, {"backbone.stem.conv.weight": torch.zeros(2)}, {"scope": scope})
        found = begin(Choice("custom", method="autoencoder", weights=str(file)))
        assert (found.scope, found.weights, found.stages) == (scope, weights.resolve(file), ())
        assert Choice("custom", method="autoencoder").resolved_method == "autoencoder"


def test_lite0_has_imagenet_weights_without_a_network() -> None:
    found = begin(Choice("imagenet"), backbones.get("lite0", "std"))
    assert found.weights is not None
    assert found.weights.source == "imagenet-lite0"


@pytest.mark.parametrize(
    ("choice", "backbone", "message"),
    [
        (Choice("imagenet"), "swin:nano", "No public imagenet weights by cls are known for swin:nano"),
        (Choice("imagenet", method="mocov3"), "lite0:std", "No public imagenet weights by mocov3"),
        (Choice("coco"), "resnet:18", "No public coco weights"),
        (Choice("coco", method="cls"), "csp_darknet:n", "--method has no meaning with --mode coco"),
        (Choice("custom", method="x"), "csp_darknet:n", "takes weights of your own: --weights FILE"),
        (Choice("custom", weights="w.pth"), "csp_darknet:n", "needs one word for how the weights were made"),
        (Choice("custom", "My Method", "w.pth"), "csp_darknet:n", "not 'My Method'"),
        (Choice("custom", "x", "w.pth", maps="random"), "csp_darknet:n", "--maps has no meaning"),
    ],
)
def test_what_is_not_there_is_said_with_the_way_out(choice, backbone, message) -> None:
    with pytest.raises(UserError, match=message):
        begin(choice, backbones.get(*backbone.split(":")))


def test_combinations_that_the_paper_has_not_are_named() -> None:
    assert begin(Choice("industrial", method="mocov3")).notes == (
        "csp_darknet by mocov3 is not among the paper's combinations",
    )
    assert begin(Choice("industrial")).notes == ()


def test_without_a_network_the_file_to_supply_is_named(fresh_home) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    words = ["run", "--backbone", "resnet:50", "--mode", "imagenet", "--protocol", "mock-v1"]
    done = benchmark(*words, AGSSP_BENCH_HOME=str(fresh_home), **nowhere)
    assert done.returncode == 2
    assert "--weights resnet50" in done.stderr
    assert "https://" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_ladder_from_the_command_line(tmp_path, agssp_home) -> None:
    common = [
        "--backbone", "csp_darknet", "--protocol", "mock-v1", "--seeds", "0", "--results", str(tmp_path),
        "--maps", "random", "--corpus", "corpus_synthetic/n20_k2_s0", "--json",
    ]  # fmt: skip
    first = benchmark("run", "--mode", "agbp", *common)
    assert first.returncode == 0, first.stderr[-3000:]
    planned = json.loads(benchmark("run", "--mode", "agssp", "--dry-run", *common).stdout)
    assert {stage["stage"]: stage["status"] for stage in planned["stages"]} == {
        "maps": "ready",
        "boxes": "to make",
        "backbone": "ready",
        "detector": "to make",
    }
    second = benchmark("run", "--mode", "agssp", *common)
    assert second.returncode == 0, second.stderr[-3000:]
    paths = [json.loads(done.stdout)["cells"][0]["record"] for done in (first, second)]
    agbp, agssp = (json.loads(Path(path).read_text()) for path in paths)
    assert agbp["key"] != agssp["key"]
    assert (agbp["weights"]["scope"], agssp["weights"]["scope"]) == ("backbone", "detector")
    assert agbp["weights"]["share_of_backbone"] == agssp["weights"]["share_of_backbone"] == 1.0
    # Six class outputs instead of one: nothing else keeps its initial values.
    assert agssp["weights"]["missing"] == []
    assert all("cls_preds" in name for name in agssp["weights"]["reinitialised"])
    assert all(name.startswith(("neck.", "bbox_head.")) for name in agbp["weights"]["missing"])
    assert set(agssp["pretraining"]["stages"]) == {"maps", "boxes", "backbone", "detector"}
    assert agssp["pretraining"]["maps"] == agbp["pretraining"]["maps"] == "random"
    assert agssp["inputs"]["upstream"] == {"detector": agssp["pretraining"]["stages"]["detector"]["key"]}
    assert set(agssp["cost"]) == {"maps", "boxes", "backbone", "detector", "finetune"}
    assert benchmark("verify", *paths).returncode == 0
