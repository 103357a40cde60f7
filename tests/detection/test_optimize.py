"""The optimised copy against the model it was made from."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from resnext_det import UserError, create_model
from resnext_det.detection.optimize import optimize_for_inference


def random_statistics(model):
    for m in model.modules():
        if isinstance(m, (FrozenBatchNorm2d, torch.nn.BatchNorm2d)):
            m.weight.data.uniform_(0.3, 0.6)
            m.running_var.uniform_(0.5, 1.5)
            m.bias.data.uniform_(-0.2, 0.2)
            m.running_mean.uniform_(-0.2, 0.2)
    return model.eval()


def detector(mask=False):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_resnext_backbone", "ResNeXtC4ROIHeads"
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8, 2
    cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = False, 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 80, 0.0
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION, cfg.MODEL.ROI_HEADS.NUM_CLASSES = 14, 3
    cfg.MODEL.MASK_ON = mask
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return random_statistics(build_model(cfg))


IMAGES = [{"image": torch.arange(3 * 96 * 128).view(3, 96, 128) * 37 % 255.0} for _ in range(2)]


@pytest.mark.parametrize("mask", [False, True])
@torch.no_grad()
def test_fp32_detections_do_not_move(mask):
    model = detector(mask)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(IMAGES)
    optimized = optimize_for_inference(model)
    for _ in range(2):  # nothing that the first call leaves behind changes the second
        for result, reference in zip(optimized(IMAGES), expected, strict=True):
            result, reference = result["instances"], reference["instances"]
            torch.testing.assert_close(result.pred_boxes.tensor, reference.pred_boxes.tensor, rtol=0, atol=1e-3)
            torch.testing.assert_close(result.scores, reference.scores, rtol=0, atol=1e-5)
            assert not mask or (result.pred_masks == reference.pred_masks).float().mean() > 0.999
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mask", [False, True])
@torch.no_grad()
def test_bf16_features_move_by_its_precision(mask):
    model = detector(mask)
    optimized = optimize_for_inference(model, "bf16")
    x = torch.randn(1, 3, 96, 128)
    expected, result = model.backbone(x)["res4"], optimized.backbone(x)["res4"]
    assert result.dtype == torch.bfloat16
    assert (result.float() - expected).norm() / expected.norm() < 0.03
    assert len(optimized(IMAGES)[0]["instances"]) > 0


@pytest.mark.parametrize("dtype, tolerance", [("fp32", 1e-5), ("bf16", 0.05)])
@torch.no_grad()
def test_classifier(dtype, tolerance):
    model = random_statistics(create_model("resnext26_32x4d", num_classes=10))
    x = torch.randn(2, 3, 64, 64)
    expected, optimized = model(x), optimize_for_inference(model, dtype)
    for size in (2, 1, 2):
        result = optimized(x[:size])
        assert (result - expected[:size]).norm() <= tolerance * expected[:size].norm()


def test_unknown_dtype():
    with pytest.raises(UserError, match="fp32, bf16, fp16"):
        optimize_for_inference(torch.nn.Identity(), "fp8")
