"""DINO with four scales around a backbone, from mmdet's classes and with its defaults.

Three scales are the backbone's, strides 8, 16 and 32; the fourth, stride 64, is a convolution of the last.
"""

from __future__ import annotations

from typing import Any

from baselines.backbones import Backbone

_SCALES = 4


def config(
    backbone: dict[str, Any],
    described: Backbone,
    num_classes: int,
    size: dict[str, int],
    test: dict[str, float],
    preprocessor: dict[str, Any],
) -> dict[str, Any]:
    """Describes the detector; see `baselines.detectors.detector_config`. It has no non-maximum suppression."""
    channels = size["channels"]
    deformable = {"embed_dims": channels, "num_levels": _SCALES, "dropout": 0.0}
    attention = {"embed_dims": channels, "num_heads": 8, "dropout": 0.0}
    feedforward = {"embed_dims": channels, "feedforward_channels": size["feedforward"], "ffn_drop": 0.0}
    return {
        "type": "agssp.DINO",
        "num_queries": size["queries"],
        "with_box_refine": True,
        "as_two_stage": True,
        "num_feature_levels": _SCALES,
        "data_preprocessor": preprocessor,
        "backbone": backbone,
        "neck": {
            "type": "mmdet.ChannelMapper",
            "in_channels": list(described.out_channels),
            "kernel_size": 1,
            "out_channels": channels,
            "act_cfg": None,
            "norm_cfg": {"type": "GN", "num_groups": 32},
            "num_outs": _SCALES,
        },
        "encoder": {
            "num_layers": size["layers"],
            "layer_cfg": {"self_attn_cfg": deformable, "ffn_cfg": feedforward},
        },
        "decoder": {
            "num_layers": size["layers"],
            "return_intermediate": True,
            "layer_cfg": {
                "self_attn_cfg": attention,
                "cross_attn_cfg": deformable,
                "ffn_cfg": feedforward,
            },
            "post_norm_cfg": None,
        },
        "positional_encoding": {
            "num_feats": channels // 2,
            "normalize": True,
            "offset": 0.0,
            "temperature": 20,
        },
        "bbox_head": {
            "type": "mmdet.DINOHead",
            "num_classes": num_classes,
            "embed_dims": channels,
            "sync_cls_avg_factor": True,
            "loss_cls": {
                "type": "mmdet.FocalLoss",
                "use_sigmoid": True,
                "gamma": 2.0,
                "alpha": 0.25,
                "loss_weight": 1.0,
            },
            "loss_bbox": {"type": "mmdet.L1Loss", "loss_weight": 5.0},
            "loss_iou": {"type": "mmdet.GIoULoss", "loss_weight": 2.0},
        },
        "dn_cfg": {
            "label_noise_scale": 0.5,
            "box_noise_scale": 1.0,
            "group_cfg": {
                "dynamic": True,
                "num_groups": None,
                "num_dn_queries": size["denoising_queries"],
            },
        },
        "train_cfg": {
            "assigner": {
                "type": "mmdet.HungarianAssigner",
                "match_costs": [
                    {"type": "mmdet.FocalLossCost", "weight": 2.0},
                    {"type": "mmdet.BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
                    {"type": "mmdet.IoUCost", "iou_mode": "giou", "weight": 2.0},
                ],
            }
        },
        "test_cfg": {
            "score_thr": test["score_threshold"],
            # A query answers for every class.
            "max_per_img": min(test["max_detections"], size["queries"] * num_classes),
        },
    }
