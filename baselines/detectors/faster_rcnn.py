"""Faster R-CNN with a feature pyramid around a backbone, from mmdet's classes and with its defaults.

Our backbones hand on strides 8, 16 and 32, so the pyramid has no level of stride 4: its five levels are strides 8 to
128 (the upper two by subsampling). Anchors have the usual sizes all the same, each a level further down; regions that
would be pooled at stride 4 are pooled at stride 8.
"""

from __future__ import annotations

from typing import Any

from baselines.backbones import Backbone

STRIDES = (8, 16, 32, 64, 128)

_USUAL_FINEST_SCALE = 56
"""Regions of a side under twice this are pooled at stride 4, where there is one (Lin et al. 2017, equation 1)."""


def config(
    backbone: dict[str, Any],
    described: Backbone,
    num_classes: int,
    size: dict[str, int],
    test: dict[str, float],
    preprocessor: dict[str, Any],
) -> dict[str, Any]:
    """Describes the detector; see `baselines.detectors.detector_config`."""
    channels = size["channels"]
    pooled = STRIDES[: len(described.out_channels)]
    nms = {"type": "nms", "iou_threshold": 0.7}
    return {
        "type": "agssp.FasterRCNN",
        "data_preprocessor": preprocessor,
        "backbone": backbone,
        "neck": {
            "type": "mmdet.FPN",
            "in_channels": list(described.out_channels),
            "out_channels": channels,
            "num_outs": len(STRIDES),
        },
        "rpn_head": {
            "type": "mmdet.RPNHead",
            "in_channels": channels,
            "feat_channels": channels,
            "anchor_generator": {
                "type": "mmdet.AnchorGenerator",
                "scales": [size["anchor_scale"]],
                "ratios": [0.5, 1.0, 2.0],
                "strides": list(STRIDES),
            },
            "bbox_coder": _coder([1.0, 1.0, 1.0, 1.0]),
            "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "mmdet.L1Loss", "loss_weight": 1.0},
        },
        "roi_head": {
            "type": "mmdet.StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "mmdet.SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
                "out_channels": channels,
                "featmap_strides": list(pooled),
                "finest_scale": 2 * _USUAL_FINEST_SCALE,
            },
            "bbox_head": {
                "type": "mmdet.Shared2FCBBoxHead",
                "in_channels": channels,
                "fc_out_channels": size["hidden"],
                "roi_feat_size": 7,
                "num_classes": num_classes,
                "bbox_coder": _coder([0.1, 0.1, 0.2, 0.2]),
                "reg_class_agnostic": False,
                "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
                "loss_bbox": {"type": "mmdet.L1Loss", "loss_weight": 1.0},
            },
        },
        "train_cfg": {
            "rpn": {
                "assigner": _assigner(0.7, 0.3, match_low_quality=True),
                "sampler": _sampler(size["sampled_anchors"], 0.5, add_gt_as_proposals=False),
                "allowed_border": -1,
                "pos_weight": -1,
                "debug": False,
            },
            "rpn_proposal": {
                "nms_pre": 2 * size["proposals"],
                "max_per_img": size["proposals"],
                "nms": nms,
                "min_bbox_size": 0,
            },
            "rcnn": {
                "assigner": _assigner(0.5, 0.5, match_low_quality=False),
                "sampler": _sampler(size["sampled_regions"], 0.25, add_gt_as_proposals=True),
                "pos_weight": -1,
                "debug": False,
            },
        },
        "test_cfg": {
            "rpn": {
                "nms_pre": size["proposals"],
                "max_per_img": size["proposals"],
                "nms": nms,
                "min_bbox_size": 0,
            },
            "rcnn": {
                "score_thr": test["score_threshold"],
                "nms": {"type": "nms", "iou_threshold": test["nms_iou"]},
                "max_per_img": test["max_detections"],
            },
        },
    }


def _coder(stds: list[float]) -> dict[str, Any]:
    return {"type": "mmdet.DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": stds}


def _assigner(positive: float, negative: float, *, match_low_quality: bool) -> dict[str, Any]:
    return {
        "type": "mmdet.MaxIoUAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": negative,
        "match_low_quality": match_low_quality,
        "ignore_iof_thr": -1,
    }


def _sampler(count: int, positives: float, *, add_gt_as_proposals: bool) -> dict[str, Any]:
    return {
        "type": "mmdet.RandomSampler",
        "num": count,
        "pos_fraction": positives,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_gt_as_proposals,
    }
