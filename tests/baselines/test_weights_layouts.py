"""Names: every library's weights give its own features in our backbones, and come back under their own names."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_backbones import build

from baselines import openmmlab
from baselines.weights import layouts, to_layout
from baselines.weights.files import read, save
from baselines.weights.loading import load
from baselines.weights.sources import LocalWeights
from datasets_builders.errors import UserError

openmmlab.activate()

import mmdet.models.backbones.swin as mmdet_swin
import mmyolo
import timm
import torchvision
from mmengine import ConfigDict
from mmengine.registry import DefaultScope
from mmpretrain.models import build_backbone  # noqa: F401  (registers the models)
from mmpretrain.registry import MODELS
from torch import Tensor, nn

State = dict[str, Tensor]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and running statistic a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(
                1 + 0.2 * noise.abs() if name.endswith("running_var") or value.ndim == 1 else 0.05 * noise
            )
    return model.eval()


def file_of(state: State, folder: Path, input: str | None = "unit") -> LocalWeights:
    path = folder / "weights.pth"
    torch.save(state, path)
    return LocalWeights(path, "0" * 64, path.name, input=input)


def microsoft(state: State) -> State:
    """timm's Swin as Microsoft's files have it: a merging belongs to the stage before."""
    names = {f"layers.{n}.downsample": f"layers.{n - 1}.downsample" for n in (1, 2, 3)}
    return {next((k.replace(a, b) for a, b in names.items() if a in k), k): v for k, v in state.items()}


def small_swin(window: int = 6) -> nn.Module:
    return timm.models.swin_transformer.SwinTransformer(
        img_size=64 * window,  # at half of it timm no longer shifts the windows of the last stage, mmdet does
        window_size=window,
        embed_dim=32,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        mlp_ratio=2,
        num_classes=5,
        strict_img_size=False,
    )


@pytest.mark.parametrize("wrapper", ["", "module.", "module.base_encoder."])
def test_torchvisions_resnet_gives_its_features(wrapper: str, tmp_path: Path) -> None:
    theirs = randomised(torchvision.models.resnet18())
    detector = build("resnet", "18")
    state = {wrapper + name: value for name, value in theirs.state_dict().items()}
    if "base_encoder" in wrapper:
        state |= {f"module.momentum_encoder.{n}": torch.zeros_like(v) for n, v in theirs.state_dict().items()}
    report = load(detector, file_of(state, tmp_path))
    assert (report.layout, report.share_of_backbone) == ("torchvision", 1.0)
    assert (report.missing, report.unexpected, report.reinitialised) == ((), (), ())
    assert report.unused == 2 + (122 if "base_encoder" in wrapper else 0)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images)))))
        for stage, feature in zip(
            ("layer2", "layer3", "layer4"), detector.eval().backbone(images), strict=True
        ):
            x = getattr(theirs, stage)(x)
            assert torch.equal(feature, x)


@pytest.mark.parametrize("numbering", ["timm", "features_only", "swin"])
def test_timms_and_microsofts_swin_give_their_features(numbering: str, tmp_path: Path) -> None:
    theirs = randomised(small_swin())
    state = dict(theirs.state_dict())
    if numbering == "swin":
        state = microsoft(state)
        # Their files hold these too, of their own window.
        state |= {"layers.1.blocks.1.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)}
        state |= {"layers.1.blocks.1.attn_mask": torch.zeros(16, 49, 49)}
    if numbering == "features_only":
        state = {name.replace("layers.", "layers_"): value for name, value in state.items()}
    detector = build("swin", "nano")
    report = load(detector, file_of(state, tmp_path))
    assert report.layout == ("swin" if numbering == "swin" else "timm")
    # Only mmdet has norms at the lower outputs.
    assert set(report.missing) == {f"backbone.norm{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}
    assert (report.unexpected, report.reinitialised, report.resized) == ((), (), ())
    images = torch.rand(1, 3, 384, 384)
    with torch.no_grad():
        x = theirs.patch_embed(images)
        features = []
        for stage in theirs.layers:
            x = stage(x)
            features.append(x)
        norms = [nn.LayerNorm(64), nn.LayerNorm(128), theirs.norm]
        for mine, raw, norm in zip(detector.eval().backbone(images), features[1:], norms, strict=True):
            assert torch.allclose(mine, norm(raw).permute(0, 3, 1, 2), atol=2e-5)


def test_swin_is_read_as_mmdet_reads_it(tmp_path: Path) -> None:
    """Including tables of another window size, through mmdet's converter and its own loading."""
    state = microsoft(randomised(small_swin(window=7)).state_dict())
    torch.save({"model": state}, tmp_path / "swin.pth")
    settings = {
        "embed_dims": 32,
        "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 4, 8),
        "mlp_ratio": 2,
        "window_size": 6,
    }
    expected = mmdet_swin.SwinTransformer(
        **settings,
        convert_weights=True,
        init_cfg=ConfigDict(type="Pretrained", checkpoint=str(tmp_path / "swin.pth")),
    )
    expected.init_weights()
    backbone = mmdet_swin.SwinTransformer(**settings)
    report = load(backbone, file_of({"model": state}, tmp_path))
    assert len(report.resized) == 8
    for name, value in expected.state_dict().items():
        if not name.startswith("norm"):  # mmdet's loading leaves the last one out: it does not know its name
            assert torch.equal(backbone.state_dict()[name], value), name
    assert torch.equal(backbone.norm3.weight, state["norm.weight"])


def test_ultralytics_names_become_mmyolos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against mmyolo's own converter, on a whole detector."""
    detector = randomised(build("csp_darknet", "n"))
    ours = dict(detector.state_dict())
    theirs = to_layout(ours, "ultralytics")
    assert {"model.0.conv.weight", "model.4.m.1.cv2.bn.bias", "model.22.cv3.2.2.bias"} <= set(theirs)
    script = Path(mmyolo.__file__).parent / ".mim/tools/model_converters/yolov8_to_mmyolo.py"
    # Their loader sees the model as Ultralytics pickles it.
    dfl = {"model.22.dfl.conv.weight": torch.arange(16.0).view(1, 16, 1, 1)}
    pickled = {"model": SimpleNamespace(state_dict=lambda: {**theirs, **dfl})}
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda source: pickled)
        runpy.run_path(str(script))["convert"]("theirs", str(tmp_path / "converted.pth"))
    converted = torch.load(tmp_path / "converted.pth", weights_only=True)["state_dict"]
    assert set(converted) == set(ours)
    assert all(torch.equal(converted[name], ours[name]) for name in ours)
    other = build("csp_darknet", "n")
    report = load(other, file_of({**theirs, **dfl}, tmp_path, input=None), "detector")
    assert (report.layout, report.input, report.loaded, report.unused) == (
        "ultralytics",
        "unit",
        len(ours),
        1,
    )
    assert all(torch.equal(value, ours[name]) for name, value in other.state_dict().items())


def test_ultralytics_classifier_lacks_the_pooling_layer_and_says_so(tmp_path: Path) -> None:
    ours = build("csp_darknet", "s").state_dict()
    theirs = {n: v for n, v in to_layout(ours, "ultralytics").items() if int(n.split(".")[1]) < 9}
    theirs |= {
        "model.9.conv.conv.weight": torch.rand(1280, 512, 1, 1),
        "model.9.linear.weight": torch.rand(9, 1280),
    }
    report = load(build("csp_darknet", "s"), file_of(theirs, tmp_path))
    assert {name.split(".")[2] for name in report.missing} == {"2"}
    assert all(name.startswith("backbone.stage4.2.") for name in report.missing)
    assert report.share_of_backbone == pytest.approx(0.87, abs=0.01)
    del theirs["model.8.cv2.conv.weight"], theirs["model.7.conv.weight"]
    with pytest.raises(UserError, match="nothing was loaded"):
        load(build("csp_darknet", "s"), file_of(theirs, tmp_path))


def build_mmpretrain(config: dict[str, Any]) -> Any:
    """Builds a model of mmpretrain, whatever scope a training before it has left as the default."""
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        return MODELS.build(config)


def test_mmpretrains_simmim_gives_its_features(tmp_path: Path) -> None:
    sizes = {"depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
    theirs = build_mmpretrain(
        {
            "type": "SimMIM",
            "backbone": {
                "type": "SimMIMSwinTransformer",
                "arch": {"embed_dims": 32, **sizes},
                "img_size": 384,
                "stage_cfgs": {"block_cfgs": {"window_size": 6}},
            },
            "neck": {"type": "SimMIMLinearDecoder", "in_channels": 256, "encoder_stride": 32},
            "head": {
                "type": "SimMIMHead",
                "patch_size": 4,
                "loss": {"type": "PixelReconstructionLoss", "criterion": "L1"},
            },
        }
    )
    theirs = randomised(theirs).backbone
    mine = mmdet_swin.SwinTransformer(embed_dims=32, window_size=6, out_indices=(1, 2, 3), **sizes)
    state = {f"backbone.{name}": value for name, value in theirs.state_dict().items()}
    checkpoint = {"state_dict": {**state, "neck.decoder.0.weight": torch.rand(4)}, "meta": {"epoch": 3}}
    report = load(mine, file_of(checkpoint, tmp_path))
    # The decoder, and the token of masked patches.
    assert (report.layout, report.unexpected, report.unused) == ("openmmlab", (), 2)
    mine.eval()
    images = torch.rand(1, 3, 384, 384)
    with torch.no_grad():
        expected = super(type(theirs), theirs).forward(images)[-1]  # nothing masked
        assert torch.equal(mine(images)[-1], expected)


def test_mmpretrains_moco_gives_the_encoder_and_not_its_average(tmp_path: Path) -> None:
    projector = {"type": "NonLinearNeck", "hid_channels": 8, "out_channels": 4}
    loss = {"type": "CrossEntropyLoss"}
    theirs = build_mmpretrain(
        {
            "type": "MoCoV3",
            "base_momentum": 0.01,
            "backbone": {"type": "ResNet", "depth": 18},
            "neck": {**projector, "in_channels": 512},
            "head": {"type": "MoCoV3Head", "predictor": {**projector, "in_channels": 4}, "loss": loss},
        }
    )
    torch.save({"state_dict": randomised(theirs).state_dict()}, tmp_path / "moco.pth")
    detector = build("resnet", "18")
    report = load(detector, LocalWeights(tmp_path / "moco.pth", "0" * 64, "moco", input="unit"))
    assert (report.layout, report.missing, report.unexpected) == ("openmmlab", (), ())
    for name, value in theirs.backbone.state_dict().items():
        assert torch.equal(detector.backbone.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("family", "variant", "layout"),
    [
        ("resnet", "18", "torchvision"),
        ("swin", "nano", "timm"),
        ("swin", "nano", "swin"),
        ("lite0", "std", "timm"),
        ("csp_darknet", "n", "ultralytics"),
        ("csp_darknet", "n", "openmmlab"),
    ],
)
def test_names_there_and_back(family: str, variant: str, layout: str) -> None:
    ours = {
        name: value
        for name, value in randomised(build(family, variant)).state_dict().items()
        if (name.startswith("backbone.") or family == "csp_darknet") and not layouts.is_derived(name)
    }
    theirs = to_layout(ours, layout)
    assert layouts.recognise(theirs) == layout
    back = layouts.to_ours(theirs, layout)
    lost = set(ours) - set(back)
    assert lost == (
        {f"backbone.norm{n}.{p}" for n in (1, 2) for p in ("weight", "bias")} if family == "swin" else set()
    )
    assert all(torch.equal(back[name], ours[name]) for name in back)


def test_exported_names_load_strictly_where_they_belong() -> None:
    swin = small_swin()
    exported = to_layout(build("swin", "nano").state_dict(), "timm")
    assert set(exported) == {name for name in swin.state_dict() if not name.startswith("head.")}
    lite0 = timm.create_model("tf_efficientnet_lite0", features_only=True)
    lite0.load_state_dict(to_layout(build("lite0", "std").state_dict(), "timm"))
    resnet = torchvision.models.resnet18()
    resnet.fc = nn.Identity()
    resnet.load_state_dict(to_layout(build("resnet", "18").state_dict(), "torchvision"))


def test_a_layout_without_names_for_a_backbone_says_so() -> None:
    with pytest.raises(UserError, match="'torchvision' has no names for this backbone"):
        to_layout(build("swin", "nano").state_dict(), "torchvision")
    with pytest.raises(UserError, match="Did you mean 'torchvision'"):
        to_layout({}, "torchvison")


@pytest.mark.parametrize(
    "names", [["a", "b"], ["model.0.conv.weight"], ["layers.0.blocks.0.attn.qkv.weight"], ["module."]]
)
def test_unknown_names_are_shown(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"none of the known layouts"):
        layouts.recognise(names)


def test_ours_come_back_as_they_were(tmp_path: Path) -> None:
    state = randomised(build("lite0", "std")).state_dict()
    save(tmp_path / "a.safetensors", state, {"scope": "detector", "backbone": "lite0:std"})
    save(
        tmp_path / "b.safetensors",
        dict(reversed(state.items())),
        {"backbone": "lite0:std", "scope": "detector"},
    )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    tensors, header = read(tmp_path / "a.safetensors")
    assert header == {"scope": "detector", "backbone": "lite0:std"}
    assert tensors.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in tensors.items())
