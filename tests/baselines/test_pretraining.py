"""The methods' losses against independent versions of them, around our own backbones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn
from torch.nn import functional

from baselines import backbones
from baselines.freezing import freeze_stages
from baselines.pretraining import Classification, MaskedImages, MomentumContrast, build_backbone

NANO = backbones.get("swin", "nano")
CSP = backbones.get("csp_darknet", "n")
CONTRAST = {"hidden": 32, "out": 16, "temperature": 0.5, "momentum": 0.1}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("backbone", [CSP, NANO], ids=lambda b: b.id)
def test_classification_is_cross_entropy_of_the_averaged_last_map(backbone) -> None:
    model = Classification(build_backbone(backbone), backbone.out_channels[-1], 5)
    model.eval()
    images, labels = torch.rand(3, 3, 64, 64), torch.tensor([4, 0, 2])
    loss = model.task_loss([images], labels, None)
    pooled = model.student(images)[-1].mean(dim=(2, 3))
    scores = (pooled @ model.head.fc.weight.T + model.head.fc.bias).detach().numpy()
    literal = [math.log(np.exp(s).sum()) - s[label] for s, label in zip(scores, (4, 0, 2), strict=True)]
    assert float(loss) == pytest.approx(float(np.mean(literal)), rel=1e-5)


class TestMomentumContrast:
    @pytest.fixture
    def model(self) -> MomentumContrast:
        MessageHub.get_current_instance().update_info("max_iters", 10)
        return MomentumContrast(build_backbone(CSP), CSP.out_channels[-1], **CONTRAST)

    def test_loss_equals_a_literal_version(self, model: MomentumContrast) -> None:
        one, two = torch.rand(2, 6, 3, 64, 64)
        # The first step copies the student, which the momentum encoder equals already.
        loss = model.task_loss([one, two], torch.zeros(6), None)

        def encode(view):
            return model.neck(model.backbone(view))[0]

        def contrast(query, key):
            query, key = (functional.normalize(x, dim=1) for x in (model.head.predictor([query])[0], key))
            similar = (query @ key.T / 0.5).detach().numpy()
            rows = [math.log(np.exp(row).sum()) - row[i] for i, row in enumerate(similar)]
            return 2 * 0.5 * np.mean(rows)

        with torch.no_grad():
            keys = [model.momentum_encoder(view)[0] for view in (one, two)]
            literal = contrast(encode(one), keys[1]) + contrast(encode(two), keys[0])
        assert float(loss) == pytest.approx(float(literal), rel=1e-4)

    def test_the_momentum_encoder_starts_as_the_student_and_follows_it(self, model: MomentumContrast) -> None:
        pairs = list(
            zip(model.backbone.parameters(), model.momentum_encoder.module[0].parameters(), strict=True)
        )
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not any(b.requires_grad for _, b in pairs)
        views = list(torch.rand(2, 4, 3, 64, 64))
        model.task_loss(views, torch.zeros(4), None)
        before = pairs[0][1].clone()
        with torch.no_grad():
            pairs[0][0].add_(1.0)
        model.task_loss(views, torch.zeros(4), None)
        # Second of ten steps, on half a cosine from 0.1 to 0.
        step = 0.1 * (1 + math.cos(math.pi * 1 / 10)) / 2
        torch.testing.assert_close(pairs[0][1], before + step)

    def test_frozen_stages_are_frozen_in_the_momentum_encoder_too(self) -> None:
        MessageHub.get_current_instance().update_info("max_iters", 10)
        student = build_backbone(CSP)
        freeze_stages(student, "csp_darknet", 2)
        model = MomentumContrast(student, CSP.out_channels[-1], **CONTRAST)
        model.train()
        statistics = {
            name: value.clone() for name, value in model.momentum_encoder.named_buffers() if "running" in name
        }
        model.task_loss(list(torch.rand(2, 4, 3, 64, 64)), torch.zeros(4), None)
        for name, value in model.momentum_encoder.named_buffers():
            if name in statistics:
                frozen = any(f".0.{part}." in name for part in ("stem", "stage1", "stage2"))
                assert torch.equal(value, statistics[name]) == frozen, name


class TestMaskedImages:
    @staticmethod
    def pair():
        """Our model, and mmpretrain's whole SimMIM with the same weights."""
        from mmengine.model import BaseDataPreprocessor
        from mmpretrain.models import SimMIM, SimMIMHead, SimMIMLinearDecoder
        from mmpretrain.models.selfsup.simmim import SimMIMSwinTransformer

        arch = {name: NANO.config[name] for name in ("embed_dims", "depths", "num_heads")}
        ours = MaskedImages(build_backbone(NANO), NANO.out_channels[-1])
        # Theirs takes the width of the feed-forward layer of each stage from its own settings.
        stages = [
            {"block_cfgs": {"window_size": 6, "ffn_cfgs": {"feedforward_channels": 2 * 32 * 2**i}}}
            for i in range(4)
        ]
        swin = SimMIMSwinTransformer(
            arch=arch, img_size=192, stage_cfgs=stages, drop_path_rate=0.0, pad_small_map=True
        )
        loss = {"type": "mmpretrain.PixelReconstructionLoss", "criterion": "L1", "channel": 3}
        theirs = SimMIM(
            backbone=swin,
            neck=SimMIMLinearDecoder(256, 32),
            head=SimMIMHead(4, loss),
            data_preprocessor=BaseDataPreprocessor(),
        )
        state = {name.replace("backbone.swin.", "backbone."): v for name, v in ours.state_dict().items()}
        state = {n: v for n, v in state.items() if not n.startswith(("backbone.norm1", "backbone.norm2"))}
        theirs.load_state_dict(state, strict=True)
        return ours, theirs

    def test_loss_and_gradients_equal_mmpretrains_simmim(self) -> None:
        from mmpretrain.structures import DataSample

        ours, theirs = self.pair()
        with torch.no_grad():
            for model in (ours, theirs):
                model.backbone.mask_token.fill_(0.3)
        images = torch.rand(2, 3, 192, 192)
        masks = (torch.rand(2, 6, 6) < 0.6).long().repeat_interleave(8, 1).repeat_interleave(8, 2)
        loss = ours.task_loss([images], torch.zeros(2), masks)
        expected = theirs.loss(images, [DataSample(mask=mask) for mask in masks])["loss"]
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)
        loss.backward()
        expected.backward()
        for name, parameter in theirs.named_parameters():
            ours_name = name.replace("backbone.", "backbone.swin.") if "mask_token" not in name else name
            mine = dict(ours.named_parameters())[ours_name].grad
            torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-7)

    def test_hidden_pixels_are_not_seen(self) -> None:
        ours, _ = self.pair()
        ours.eval()
        images = torch.rand(1, 3, 64, 64)
        mask = torch.zeros(1, 16, 16, dtype=torch.long)
        mask[:, :8] = 1
        other = images.clone()
        other[:, :, :32] = torch.rand(1, 3, 32, 64)
        with torch.no_grad():
            features = [ours.backbone(x, mask)[0] for x in (images, other)]
            clean = [ours.student(x)[-1] for x in (images, other)]
        torch.testing.assert_close(*features)
        assert not torch.allclose(*clean), "the mask is off again outside"


@pytest.mark.parametrize("family", ["csp_darknet", "resnet", "swin", "lite0"])
def test_every_trainable_parameter_of_a_backbone_gets_a_gradient(family: str) -> None:
    """What no loss reaches must not wait for gradients (several ranks would wait for ever)."""
    variant = {"csp_darknet": "n", "resnet": "18", "swin": "nano", "lite0": "std"}[family]
    backbone = backbones.get(family, variant)
    model = Classification(build_backbone(backbone), backbone.out_channels[-1], 3)
    model.task_loss([torch.rand(2, 3, 64, 64)], torch.tensor([0, 1]), None).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    if family == "swin":
        lacking = {name for name, p in model.student.named_parameters() if not p.requires_grad}
        assert lacking == {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}


@pytest.mark.parametrize(("family", "variant"), [("csp_darknet", "n"), ("resnet", "18"), ("swin", "nano")])
def test_a_backbone_has_the_names_and_behaviour_it_has_in_a_detector(family: str, variant: str) -> None:
    from baselines.detectors import build_detector, detector_config

    backbone = backbones.get(family, variant)
    detector = build_detector(
        detector_config(
            "yolov8",
            backbone,
            2,
            losses={"cls": 0.5, "box": 7.5, "dfl": 0.375},
            assigner={"topk": 10, "alpha": 0.5, "beta": 6.0},
            test={"score_threshold": 0.001, "nms_iou": 0.7, "max_detections": 300},
        )
    )
    ours, theirs = build_backbone(backbone), detector.backbone
    theirs.load_state_dict(ours.state_dict(), strict=True)
    norms = [
        [(type(m), m.eps, m.momentum) for m in b.modules() if isinstance(m, nn.BatchNorm2d)]
        for b in (ours, theirs)
    ]
    assert norms[0] == norms[1]
    ours.eval()
    theirs.eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(ours(images), theirs(images), strict=True):
            assert torch.equal(a, b)
