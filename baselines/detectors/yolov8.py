"""YOLOv8's neck and head around a backbone, from mmyolo's classes."""

from __future__ import annotations

from typing import Any

from baselines.backbones import Backbone

STRIDES = (8, 16, 32)

NORM = {"type": "BN", "momentum": 0.03, "eps": 0.001}
ACTIVATION = {"type": "SiLU", "inplace": True}


def config(
    backbone: dict[str, Any],
    described: Backbone,
    num_classes: int,
    losses: dict[str, float],
    assigner: dict[str, float],
    test: dict[str, float],
) -> dict[str, Any]:
    """Describes the detector; see `baselines.detectors.detector_config`."""
    neck = described.neck
    widen = neck["widen_factor"]
    return {
        "type": "mmyolo.YOLODetector",
        "data_preprocessor": {
            "type": "mmyolo.YOLOv5DetDataPreprocessor",
            "mean": [0.0, 0.0, 0.0],
            "std": [255.0, 255.0, 255.0],
            "bgr_to_rgb": True,
        },
        "backbone": backbone,
        "neck": {
            "type": "mmyolo.YOLOv8PAFPN",
            "deepen_factor": 0.33,
            "widen_factor": widen,
            "in_channels": neck["in_channels"],
            "out_channels": neck["out_channels"],
            "num_csp_blocks": 3,
            "norm_cfg": NORM,
            "act_cfg": ACTIVATION,
        },
        "bbox_head": {
            "type": "mmyolo.YOLOv8Head",
            "head_module": {
                "type": "mmyolo.YOLOv8HeadModule",
                "num_classes": num_classes,
                "in_channels": neck["out_channels"],
                "widen_factor": widen,
                "reg_max": 16,
                "norm_cfg": NORM,
                "act_cfg": ACTIVATION,
                "featmap_strides": list(STRIDES),
            },
            "prior_generator": {"type": "mmdet.MlvlPointGenerator", "offset": 0.5, "strides": list(STRIDES)},
            "bbox_coder": {"type": "mmyolo.DistancePointBBoxCoder"},
            "loss_cls": {
                "type": "mmdet.CrossEntropyLoss",
                "use_sigmoid": True,
                "reduction": "none",
                "loss_weight": losses["cls"],
            },
            "loss_bbox": {
                "type": "mmyolo.IoULoss",
                "iou_mode": "ciou",
                "bbox_format": "xyxy",
                "reduction": "sum",
                "loss_weight": losses["box"],
                "return_iou": False,
            },
            "loss_dfl": {
                "type": "mmdet.DistributionFocalLoss",
                "reduction": "mean",
                "loss_weight": losses["dfl"],
            },
        },
        "train_cfg": {
            "assigner": {
                "type": "mmyolo.BatchTaskAlignedAssigner",
                "num_classes": num_classes,
                "use_ciou": True,
                "topk": assigner["topk"],
                "alpha": assigner["alpha"],
                "beta": assigner["beta"],
                "eps": 1e-9,
            }
        },
        "test_cfg": {
            "multi_label": True,
            "nms_pre": 30000,
            "score_thr": test["score_threshold"],
            "nms": {"type": "nms", "iou_threshold": test["nms_iou"]},
            "max_per_img": test["max_detections"],
        },
    }
