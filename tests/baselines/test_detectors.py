"""Faster R-CNN and DINO: mmdet's own around our backbones, on letterboxed images, from weights with other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import backbones, openmmlab, weights

openmmlab.activate()

from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from baselines.detectors import build_detector, count_parameters, detector_config
from baselines.freezing import freeze_stages
from baselines.training.optim import build_optimizer
from baselines.training.recipes import Optimizer
from datasets_builders.errors import UserError

TEST = {"score_threshold": 0.0, "nms_iou": 0.5, "max_detections": 100}
MMDET = ("faster_rcnn", "dino")
CLASS_OUTPUTS = {
    "faster_rcnn": ("roi_head.bbox_head.fc_cls.", "roi_head.bbox_head.fc_reg."),
    "dino": ("bbox_head.cls_branches.", "dn_query_generator.label_embedding."),
}


def config(
    detector: str, backbone: str = "csp_darknet:n", num_classes: int = 3, size: str = "small"
) -> dict[str, Any]:
    return detector_config(detector, backbones.get(*backbone.split(":")), num_classes, test=TEST, size=size)


def build(*args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    model = build_detector(config(*args, **kwargs))
    model.init_weights()
    return model


def mmdets_own(detector: str) -> Any:
    """mmdet's published configuration, changed only where ours says that it differs."""
    import mmdet
    from mmengine import Config

    names = {
        "faster_rcnn": "_base_/models/faster-rcnn_r50_fpn.py",
        "dino": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    }
    model = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / names[detector]).model
    model.backbone.update(out_indices=(1, 2, 3), init_cfg=None)
    model.neck.in_channels = [512, 1024, 2048]
    if detector == "dino":
        model.num_queries = 100
    return model


def batch(
    boxes_per_image: list[list[list[float]]], side: int = 64
) -> tuple[torch.Tensor, list[DetDataSample]]:
    samples = []
    for boxes in boxes_per_image:
        sample = DetDataSample()
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.zeros(len(boxes), dtype=torch.int64),
        )
        shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (side, side))
        sample.set_metainfo({**shapes, "scale_factor": (1.0, 1.0), "pad_param": (0, 0, 0, 0)})
        samples.append(sample)
    return torch.rand(len(samples), 3, side, side, generator=torch.Generator().manual_seed(0)), samples


def total(losses: dict[str, Any]) -> torch.Tensor:
    parts = [
        part
        for name, value in losses.items()
        if "loss" in name
        for part in (value if isinstance(value, list) else [value])
    ]
    return torch.stack([part.sum() for part in parts]).sum()


def without_scopes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_scopes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_scopes(item) for item in value]
    return value.removeprefix("mmdet.") if isinstance(value, str) else value


def test_full_faster_rcnn_is_mmdets_but_for_its_levels() -> None:
    ours = without_scopes(config("faster_rcnn", "resnet:50", 80, "full"))
    theirs = without_scopes(mmdets_own("faster_rcnn").to_dict())
    assert ours["train_cfg"] == theirs["train_cfg"]
    assert ours["test_cfg"]["rpn"] == theirs["test_cfg"]["rpn"]
    assert ours["neck"] == theirs["neck"]
    for part in ("rpn_head", "roi_head"):
        for side in (ours, theirs):
            side[part].pop("anchor_generator", None)
            side[part].pop("bbox_roi_extractor", None)
        assert ours[part] == theirs[part]


def test_full_dino_is_mmdets_with_the_papers_queries() -> None:
    ours = without_scopes(config("dino", "resnet:50", 80, "full"))
    theirs = without_scopes(mmdets_own("dino").to_dict())
    # What mmdet leaves to the defaults of its classes.
    theirs["bbox_head"]["embed_dims"] = 256
    theirs["num_feature_levels"] = 4
    layer = theirs["decoder"]["layer_cfg"]
    assert layer["self_attn_cfg"]["num_heads"] == 8
    ours["test_cfg"], theirs["test_cfg"] = None, None  # the recipe's
    differing = {key for key in theirs if ours[key] != theirs[key]}
    assert differing == {"type", "data_preprocessor", "backbone"}
    assert ours["num_queries"] == 100


@pytest.mark.slow
@pytest.mark.parametrize(("detector", "millions"), [("faster_rcnn", 41.0972), ("dino", 47.6287)])
def test_full_models_have_exactly_mmdets_tensors(detector: str, millions: float) -> None:
    from mmdet.utils import register_all_modules
    from mmengine.registry import MODELS, DefaultScope

    ours = build_detector(config(detector, "resnet:50", 80, "full"))
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope("mmdet"):
        theirs = MODELS.build(mmdets_own(detector))
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    # The usual Faster R-CNN R50 has 41.7531 million with 80 classes; without a pyramid level of stride 4 (1x1 from 256
    # channels, 3x3, both with bias) 0.6559 fewer.
    assert sum(p.numel() for p in ours.parameters()) / 1e6 == pytest.approx(millions, abs=0.00006)
    assert count_parameters(ours) == sum(p.numel() for p in ours.parameters())


def test_anchors_have_mmdets_sizes() -> None:
    from mmdet.models.task_modules.prior_generators import AnchorGenerator

    usual = AnchorGenerator(strides=[4, 8, 16, 32, 64], scales=[8], ratios=[0.5, 1.0, 2.0])
    ours = build("faster_rcnn", size="full").rpn_head.prior_generator

    def sizes(generator: Any) -> torch.Tensor:
        return torch.cat([anchors[:, 2:] - anchors[:, :2] for anchors in generator.base_anchors])

    torch.testing.assert_close(sizes(ours), sizes(usual))
    assert [stride[0] for stride in ours.strides] == [8, 16, 32, 64, 128]


def test_regions_are_pooled_at_the_usual_level_but_the_lowest() -> None:
    extractor = build("faster_rcnn").roi_head.bbox_roi_extractor
    regions = torch.tensor(
        [[0, 0, 0, side, side] for side in (20.0, 100.0, 223.0, 225.0, 447.0, 449.0, 900.0)]
    )
    levels = extractor.map_roi_levels(regions, 3)
    assert [extractor.featmap_strides[level] for level in levels] == [8, 8, 8, 16, 16, 32, 32]


@pytest.mark.parametrize("detector", MMDET)
@pytest.mark.parametrize("backbone", ["csp_darknet:n", "swin:nano", "lite0:std"])
def test_every_backbone_gets_a_finite_loss_and_gradients(detector: str, backbone: str) -> None:
    model = build(detector, backbone).train()
    loss = total(model.loss(*batch([[[5, 10, 35, 45]], [[30, 15, 60, 30], [2, 2, 20, 20]]])))
    loss.backward()
    assert torch.isfinite(loss)
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("detector", MMDET)
def test_a_batch_without_any_box_trains_too(detector: str) -> None:
    model = build(detector, num_classes=1).train()
    loss = total(model.loss(*batch([[], []])))
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("detector", MMDET)
@pytest.mark.parametrize("num_classes", [1, 3])
def test_predictions_have_known_classes_and_lie_in_the_image(detector: str, num_classes: int) -> None:
    model = build(detector, num_classes=num_classes).eval()
    images, samples = batch([[], []])
    for sample in samples:  # 100 x 50 pixels, with padding above and below
        sample.set_metainfo(
            {"ori_shape": (50, 100), "scale_factor": (0.64, 0.64), "pad_param": (16, 16, 0, 0)}
        )
    with torch.no_grad():
        found = [sample.pred_instances for sample in model.predict(images, samples)]
    assert any(len(instances) for instances in found)
    for instances in found:
        assert 0 <= len(instances) <= TEST["max_detections"]
        assert ((instances.labels >= 0) & (instances.labels < num_classes)).all()
        assert (instances.bboxes >= 0).all()
        assert (instances.bboxes <= torch.tensor([100.0, 50.0, 100.0, 50.0])).all()


@pytest.mark.parametrize("size", [(97, 33), (20, 90), (64, 64), (300, 211)])
def test_ground_truth_comes_back_through_the_letterbox(size: tuple[int, int]) -> None:
    """mmdet's heads divide by `scale_factor`; a head that finds the truth must give the boxes of the dataset."""
    import io

    import datasets
    import numpy as np
    from PIL import Image

    from baselines.detectors.letterboxed import _Letterboxed
    from baselines.training.data import DefectDataset, test_pipeline
    from datasets_builders.schema import detection_features

    width, height = size
    box = [0.25 * width, 0.1 * height, 0.5 * width, 0.75 * height]
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "PNG")
    row = {
        "image": {"bytes": buffer.getvalue(), "path": None}, "image_id": "a", "width": width, "height": height,
        "objects": {"id": [0], "bbox": [box], "area": [1.0], "category": [0]}, "mask": None,
    }  # fmt: skip
    split = datasets.Dataset.from_list([row], features=detection_features(["defect"]))
    sample = DefectDataset(split, 64, test_pipeline(64), test_mode=True)[0]["data_samples"]
    assert sample.img_shape == (64, 64)

    class Head:
        test_cfg: dict[str, Any] = {}  # noqa: RUF012

        def predict(self, inputs: Any, samples: list[Any], rescale: bool) -> list[Any]:
            for one in samples:
                boxes = one.gt_instances.bboxes.tensor / torch.tensor(one.scale_factor).repeat(2)
                one.pred_instances = InstanceData(bboxes=boxes, scores=torch.ones(1), labels=torch.zeros(1))
            return samples

    class Detector(_Letterboxed, Head):
        pass

    (found,) = Detector().predict(torch.empty(0), [sample])
    x, y, w, h = box
    torch.testing.assert_close(
        found.pred_instances.bboxes, torch.tensor([[x, y, x + w, y + h]]), rtol=1e-4, atol=1e-3
    )


def test_dino_keeps_no_more_than_its_queries_can_say_and_nothing_below_the_threshold() -> None:
    backbone = backbones.get("csp_darknet", "n")
    many = {"score_threshold": 0.011, "nms_iou": 1.0, "max_detections": 1000}
    torch.manual_seed(0)
    model: Any = build_detector(detector_config("dino", backbone, 1, test=many, size="small"))
    model.init_weights()
    assert model.bbox_head.test_cfg.max_per_img == 30
    with torch.no_grad():
        model.bbox_head.cls_branches[1].weight.normal_(std=0.01)
        found = model.eval().predict(*batch([[]]))[0].pred_instances
        model.test_cfg.score_thr = 0.0
        everything = model.predict(*batch([[]]))[0].pred_instances
    assert len(everything) == 30
    assert 0 < len(found) < 30
    assert torch.equal(found.scores, everything.scores[everything.scores > 0.011])


@pytest.mark.parametrize("detector", MMDET)
@pytest.mark.parametrize(("before", "after"), [(1, 6), (1, 1), (7, 6)])
def test_everything_but_the_class_outputs_is_loaded(
    tmp_path: Path, detector: str, before: int, after: int
) -> None:
    donor = build(detector, num_classes=before)
    with torch.no_grad():
        for parameter in donor.parameters():
            parameter.add_(0.01)
    weights.save(tmp_path / "donor.safetensors", donor.state_dict(), {"scope": "detector"})
    model = build(detector, num_classes=after)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    report = weights.load(model, weights.resolve(tmp_path / "donor.safetensors"), "detector")
    given = donor.state_dict()
    outputs = {name for name in initial if name.startswith(CLASS_OUTPUTS[detector])}
    assert outputs
    assert set(report.reinitialised) == (set() if before == after else outputs)
    assert (report.missing, report.unexpected, report.share_of_backbone) == ((), (), 1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, initial[name] if name in report.reinitialised else given[name]), name


def test_weights_of_another_detector_are_refused(tmp_path: Path) -> None:
    weights.save(tmp_path / "donor.safetensors", build("dino").state_dict(), {"scope": "detector"})
    with pytest.raises(UserError, match="neck's and head's"):
        weights.load(build("faster_rcnn"), weights.resolve(tmp_path / "donor.safetensors"), "detector")


@pytest.mark.parametrize("detector", MMDET)
def test_backbone_factor_slows_the_backbone_alone(detector: str) -> None:
    model = build(detector, "swin:nano")
    recipe = Optimizer(type="AdamW", lr=0.001, weight_decay=0.05, backbone_factor=0.1)
    groups = build_optimizer(model, recipe).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.0001 if name.startswith("backbone.") else 0.001), name
    plain = build_optimizer(model, recipe.model_copy(update={"backbone_factor": None})).param_groups
    assert [group["weight_decay"] for group in plain] == [0.05, 0.0, 0.0]
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {id(p): group["weight_decay"] for group in plain for p in group["params"]}


def test_what_a_recipe_lacks_is_told() -> None:
    backbone = backbones.get("swin", "nano")
    with pytest.raises(UserError, match="needs `losses` and `assigner`"):
        detector_config("yolov8", backbone, 1, test=TEST)
    with pytest.raises(UserError, match="has no sizes"):
        detector_config("yolov8", backbone, 1, test=TEST, size="full")
    with pytest.raises(UserError, match="Did you mean 'small'"):
        detector_config("dino", backbone, 1, test=TEST, size="smal")
    with pytest.raises(UserError, match="size of faster_rcnn"):
        detector_config("faster_rcnn", backbone, 1, test=TEST)


@pytest.mark.slow
@pytest.mark.parametrize("detector", MMDET)
@pytest.mark.parametrize("backbone", ["csp_darknet:s", "resnet:50", "swin:base"])
def test_one_step_of_pretraining_at_the_papers_sizes(detector: str, backbone: str) -> None:
    """Fig. 6(e): backbone frozen, one class, a negative in the batch."""
    model = build(detector, backbone, 1, "full").train()
    frozen = freeze_stages(model.backbone, backbone.split(":")[0], 4)
    assert set(frozen) == {name for name, _ in model.backbone.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, Optimizer(type="AdamW", lr=0.001, weight_decay=0.0))
    loss = total(model.loss(*batch([[[10, 20, 70, 90]], []], side=128)))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    for name, value in model.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(value, before[name]), name
    moved = {name for name in trainable if not torch.equal(model.state_dict()[name], before[name])}
    assert len(moved) > 0.9 * len(trainable)
