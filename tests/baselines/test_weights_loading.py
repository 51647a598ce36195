"""Loading: all that fits or nothing, class outputs of any number of classes, and a report that tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_backbones import build
from torch import Tensor, nn

from baselines import openmmlab, weights
from baselines.weights import LocalWeights, files, lite0
from baselines.weights.loading import LoadReport, load
from datasets_builders.errors import UserError

openmmlab.activate()

import timm


def random_state(model: nn.Module, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.1
        if value.is_floating_point()
        else value.clone() + 5
        for name, value in model.state_dict().items()
    }


def ours(state: dict[str, Tensor], folder: Path) -> LocalWeights:
    weights.save(folder / "w.safetensors", state, {"scope": "detector"})
    return weights.resolve(folder / "w.safetensors")


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_backbone_is_loaded_and_nothing_else(tmp_path: Path) -> None:
    model = build("csp_darknet", "n")
    before, state = snapshot(model), random_state(model)
    local = ours(state, tmp_path)
    assert (local.scope, local.layout, local.input) == ("detector", None, None)
    report = load(model, local)
    backbone = {name for name in state if name.startswith("backbone.")}
    assert changed(before, model) == backbone
    assert all(
        torch.equal(value, state[name]) for name, value in model.state_dict().items() if name in backbone
    )
    assert (report.loaded, report.share_of_backbone, report.input) == (len(backbone), 1.0, "unit")
    assert (report.missing, report.unexpected, report.reinitialised) == ((), (), ())
    assert report.unused == len(state) - len(backbone)


@pytest.mark.parametrize("family", ["resnet", "swin"])
def test_our_own_files_are_not_folded_again(family: str, tmp_path: Path) -> None:
    """The same names without our header are OpenMMLab's, which sees ImageNet's mean and deviation."""
    model = build(family, {"resnet": "18", "swin": "nano"}[family])
    state = {name: value for name, value in random_state(model).items() if name.startswith("backbone.")}
    local = ours(state, tmp_path)
    assert load(model, local).input == "unit"
    name = "backbone.conv1.weight" if family == "resnet" else "backbone.patch_embed.projection.weight"
    assert torch.equal(model.state_dict()[name], state[name])
    torch.save(state, tmp_path / "w.pth")
    assert load(model, weights.resolve(tmp_path / "w.pth")).input == "imagenet"
    assert not torch.equal(model.state_dict()[name], state[name])
    assert load(model, weights.resolve(tmp_path / "w.pth", input="unit")).input == "unit"
    assert torch.equal(model.state_dict()[name], state[name])


def test_a_bare_backbone_takes_the_same_file(tmp_path: Path) -> None:
    state = random_state(build("lite0", "std"))
    backbone = build("lite0", "std").backbone
    report = load(backbone, ours(state, tmp_path))
    assert report.share_of_backbone == 1.0
    assert all(torch.equal(value, state[f"backbone.{name}"]) for name, value in backbone.state_dict().items())
    with pytest.raises(ValueError, match="scope 'backbone'"):
        load(backbone, ours(state, tmp_path), "detector")


@pytest.mark.parametrize("classes", [1, 7])
def test_a_detector_brings_everything_but_its_class_outputs(classes: int, tmp_path: Path) -> None:
    """The authors' files have heads of 1 class, or of 7, the letters of a string."""
    state = random_state(build("csp_darknet", "n", classes))
    model = build("csp_darknet", "n", 6)
    before = snapshot(model)
    report = load(model, ours(state, tmp_path), "detector")
    outputs = {
        f"bbox_head.head_module.cls_preds.{n}.2.{part}" for n in range(3) for part in ("weight", "bias")
    }
    assert set(report.reinitialised) == outputs
    assert changed(before, model) == set(state) - outputs
    assert report.loaded == len(state) - 6


def test_the_same_number_of_classes_loads_the_class_outputs_too(tmp_path: Path) -> None:
    state = random_state(build("csp_darknet", "n", 6))
    report = load(build("csp_darknet", "n", 6), ours(state, tmp_path), "detector")
    assert (report.loaded, report.reinitialised) == (len(state), ())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda s: {n: v for n, v in s.items() if "stage4" not in n}, r"only \d\d\.\d %"),
        (
            lambda s: {n: v[:1] if v.ndim == 4 else v for n, v in s.items()},
            r"Without a match: backbone\.stem\.conv\.weight",
        ),
        (
            lambda s: {n: v for n, v in s.items() if "running" not in n},
            "running means and variances are missing",
        ),
        (lambda s: {n: v for n, v in s.items() if n.startswith("backbone.")}, "only 0.0 % of the neck's"),
        # Counters of batches fit anything.
        (
            lambda s: {n: v[:1] if v.ndim and n[0] != "b" else v for n, v in s.items() if "head" not in n},
            "only 0.0 % of the neck's",
        ),
    ],
)
def test_partial_weights_change_nothing(damage, says: str, tmp_path: Path) -> None:
    model = build("csp_darknet", "n")
    before = snapshot(model)
    with pytest.raises(UserError, match=says):
        load(model, ours(damage(random_state(model)), tmp_path), "detector")
    assert changed(before, model) == set()


@pytest.mark.parametrize(
    ("of", "into"), [(("resnet", "18"), ("csp_darknet", "n")), (("swin", "nano"), ("swin", "tiny"))]
)
def test_weights_of_another_backbone_are_refused(of, into, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another backbone, or of another size"):
        load(build(*into), ours(random_state(build(*of)), tmp_path))


def test_surplus_and_missing_tensors_are_named(tmp_path: Path) -> None:
    model = build("csp_darknet", "n")
    state = random_state(model)
    del state["backbone.stem.bn.bias"], state["backbone.stem.bn.num_batches_tracked"]
    state["backbone.gate"] = torch.rand(2)
    report = load(model, ours(state, tmp_path))
    assert (report.missing, report.unexpected) == (("backbone.stem.bn.bias",), ("backbone.gate",))
    assert report.share_of_backbone == pytest.approx(1 - 16 / report.backbone_parameters)
    text = "\n".join(report.describe())
    assert "missing   1 (initial values): backbone.stem.bn.bias" in text
    assert "surplus   1: backbone.gate" in text


def test_the_report_reads_well() -> None:
    many = tuple(f"bbox_head.{n}" for n in range(5))
    report = LoadReport(
        "x.pth", "ab" * 32, "backbone", "torchvision", "imagenet", 9, (), many, (), (), 2, 200, 199
    )
    assert report.describe() == [
        "weights   x.pth (sha256 abababababab, names of torchvision)",
        "input     trained on 'imagenet', folded into the first convolution for RGB in [0, 1]",
        "loaded    9 tensors, 99.5 % of the backbone's 200 parameters",
        "initial   5 (other shape): bbox_head.0, bbox_head.1, bbox_head.2 and 2 more",
        "unused    2 tensors outside the backbone",
    ]


def test_the_records_fields_are_there() -> None:
    from benchmark.record_schema import WeightsReport

    report = LoadReport(
        "x.pth", "ab" * 32, "backbone", "timm", "unit", 9, (), ("a",), ("b",), ("c",), 2, 10, 10
    )
    kept = {name: getattr(report, name) for name in WeightsReport.model_fields}
    assert WeightsReport(**kept).share_of_backbone == 1.0


def test_the_package_brings_imagenet_weights() -> None:
    """EfficientNet-Lite0: genuine weights with no network, seeing images as they are."""
    local = weights.resolve("imagenet-lite0")
    model = build("lite0", "std")
    before = snapshot(model)
    report = load(model, local)
    assert (report.layout, report.input, report.share_of_backbone) == ("efficientnet", "tf_lite", 1.0)
    assert (report.missing, report.unexpected, report.reinitialised) == ((), (), ())
    # timm's names for the last convolution, its norm and the classifier.
    assert report.unused == 8
    assert {name for name in changed(before, model) if not name.startswith("backbone.")} == set()
    # The same network as timm's, which sees normalised images: equal where no filter reaches over the border.
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict({lite0.our_name(name): value for name, value in files.read(local.path)[0].items()})
    images = torch.rand(1, 3, 64, 64)
    model.eval()
    with torch.no_grad():
        expected = theirs.bn1(theirs.conv_stem((images * 255 - 127) / 128))
        mine = model.backbone.bn1(model.backbone.conv_stem(images))
    assert torch.allclose(mine[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-4)


@pytest.mark.real_data
@pytest.mark.parametrize(("classes", "loaded"), [(80, 354), (6, 318)])
def test_genuine_coco_weights(classes: int, loaded: int, raw_data: Path) -> None:
    """With fewer classes the classification branch is 64 wide instead of 80."""
    path = raw_data / "weights" / "yolov8n_coco.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    report = load(build("csp_darknet", "n", classes), weights.resolve(path), "detector")
    assert (report.layout, report.input, report.share_of_backbone) == ("openmmlab", "unit", 1.0)
    assert (report.loaded, len(report.reinitialised), report.missing, report.unexpected) == (
        loaded,
        354 - loaded,
        (),
        (),
    )
    assert all(name.startswith("bbox_head.head_module.cls_preds.") for name in report.reinitialised)
