"""YOLOv8, Faster R-CNN and DINO train and predict on the operators in force."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from baselines import openmmlab

openmmlab.activate()


def small_faster_rcnn() -> dict[str, Any]:
    from mmengine import Config

    model = Config.fromfile(mmdet_config("_base_/models/faster-rcnn_r50_fpn.py")).model
    model.backbone.update(depth=18, init_cfg=None, frozen_stages=-1, base_channels=16)
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
    model.rpn_head.update(in_channels=32, feat_channels=32)
    model.roi_head.bbox_roi_extractor.update(out_channels=32)
    model.roi_head.bbox_head.update(in_channels=32, fc_out_channels=32, num_classes=3)
    model.test_cfg.rcnn.score_thr = 0.0
    return model


def small_dino() -> dict[str, Any]:
    from mmengine import Config

    model = Config.fromfile(mmdet_config("dino/dino-4scale_r50_8xb2-12e_coco.py")).model
    model.backbone.update(depth=18, init_cfg=None, frozen_stages=-1, base_channels=16)
    model.neck.update(in_channels=[32, 64, 128], out_channels=32, norm_cfg={"type": "GN", "num_groups": 4})
    model.num_queries = 20
    for part in (model.encoder, model.decoder):
        part.num_layers = 2
        part.layer_cfg.self_attn_cfg.update(embed_dims=32)
        part.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=32)
    model.decoder.layer_cfg.cross_attn_cfg.update(embed_dims=32)
    model.positional_encoding.num_feats = 16
    model.bbox_head.num_classes = 3
    model.bbox_head.embed_dims = 32
    model.dn_cfg.group_cfg.num_dn_queries = 10
    model.test_cfg.max_per_img = 10
    return model


def small_yolov8() -> dict[str, Any]:
    import mmyolo
    from mmengine import Config

    folder = Path(mmyolo.__file__).parent / ".mim/configs/yolov8"
    model = Config.fromfile(folder / "yolov8_n_syncbn_fast_8xb16-500e_coco.py").model
    for part in (model.backbone, model.neck, model.bbox_head.head_module):
        part.norm_cfg = {"type": "BN"}
    model.bbox_head.head_module.num_classes = model.train_cfg.assigner.num_classes = 3
    return model


def mmdet_config(name: str) -> Path:
    import mmdet

    return Path(mmdet.__file__).parent / ".mim/configs" / name


def flat_losses(losses: dict[str, Any]) -> list[Any]:
    return [loss for value in losses.values() for loss in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("detector", ["yolov8", "faster_rcnn", "dino"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_detectors_train_and_predict(detector: str, device: str) -> None:
    import mmyolo.models  # noqa: F401
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine import ConfigDict
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.structures import InstanceData

    register_all_modules(init_default_scope=False)
    torch.manual_seed(0)
    config = {"yolov8": small_yolov8, "faster_rcnn": small_faster_rcnn, "dino": small_dino}[detector]()
    config.pop("data_preprocessor")
    scope = "mmyolo" if detector == "yolov8" else "mmdet"
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(ConfigDict(config, _scope_=scope))
        model.init_weights()
        model.to(device).train()
        images = torch.rand(2, 3, 128, 160, device=device)
        samples = []
        for _ in range(2):
            sample = DetDataSample()
            sample.gt_instances = InstanceData(
                bboxes=torch.tensor([[10.0, 20, 70, 90], [60, 30, 150, 60]], device=device),
                labels=torch.tensor([0, 2], device=device),
            )
            shapes = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (128, 160))
            sample.set_metainfo({**shapes, "scale_factor": (1.0, 1.0), "pad_param": None, "img_id": 0})
            samples.append(sample)
        batch: Any = samples
        if detector == "yolov8":
            rows = [
                [index, int(label), *box.tolist()]
                for index, sample in enumerate(samples)
                for label, box in zip(sample.gt_instances.labels, sample.gt_instances.bboxes, strict=True)
            ]
            metas = [sample.metainfo for sample in samples]
            batch = {"bboxes_labels": torch.tensor(rows, device=device), "img_metas": metas}
        losses = flat_losses(model.loss(images, batch))
        sum(losses).backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        assert gradients
        assert all(torch.isfinite(loss).all() for loss in losses)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)
        model.eval()
        extension = importlib.import_module("mmcv._ext")
        with torch.no_grad(), mock.patch.object(extension, "nms", wraps=extension.nms) as nms:
            predictions = [result.pred_instances for result in model.predict(images, samples)]
            calls = [(call.args, call.kwargs["iou_threshold"]) for call in nms.mock_calls]
            for (boxes, scores), threshold in calls:
                check_suppressed(boxes, scores, threshold, nms(boxes, scores, threshold, offset=0))
    assert len(calls) == {"yolov8": 2, "faster_rcnn": 4, "dino": 0}[detector]
    for prediction in predictions:
        assert prediction.bboxes.shape == (len(prediction.scores), 4)
        assert ((prediction.labels >= 0) & (prediction.labels < 3)).all()
        assert torch.equal(prediction.scores, prediction.scores.sort(descending=True).values)
    assert any(len(prediction.scores) for prediction in predictions)


def check_suppressed(boxes: Any, scores: Any, threshold: float, keep: Any) -> None:
    """What is kept does not overlap by more than the threshold; what is not does, with something better."""
    import torch
    from mmdet.structures.bbox import bbox_overlaps

    assert scores[keep].diff().max() <= 0
    among = bbox_overlaps(boxes[keep], boxes[keep]).fill_diagonal_(0)
    assert among.max() <= threshold + 1e-5
    gone = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    gone[keep] = False
    better = scores[keep] >= scores[gone][:, None]
    best = (bbox_overlaps(boxes[gone], boxes[keep]) * better).max(dim=1).values
    assert (best > threshold - 1e-5).all()
