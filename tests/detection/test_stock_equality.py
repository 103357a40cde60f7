"""The whole detector against stock detectron2's with the same weights: detections, losses and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from agreement import assert_same_detections
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

STOCK, OURS = ("build_resnet_backbone", "Res5ROIHeads"), ("build_resnext_backbone", "ResNeXtC4ROIHeads")
NETWORKS = {"R_50": (1, 64), "X_50_32x4d": (32, 4)}


def detectors(network: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Stock detectron2's detector and ours, full size, with the same random weights and lively norms."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = NETWORKS[network]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20, 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
    models = []
    for cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME in (STOCK, OURS):
        torch.manual_seed(0)
        models.append(build_model(cfg).to(dtype))
    stock, ours = models
    for name, module in stock.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            last = name.endswith("conv3.norm")  # a gentle residual branch keeps 50 layers in range
            module.weight.uniform_(0.1, 0.3) if last else module.weight.uniform_(0.5, 1.0)
            module.bias.uniform_(-0.1, 0.1)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def record(height: int = 128, width: int = 160) -> dict:
    targets = Instances((height, width))
    targets.gt_boxes = Boxes(torch.tensor([[20.0, 30, 90, 100], [60, 10, 150, 70]]))
    targets.gt_classes = torch.tensor([0, 2])
    return {"image": torch.rand(3, height, width) * 255, "instances": targets, "height": height, "width": width}


@pytest.mark.parametrize("network", NETWORKS)
def test_boxes_scores_and_classes_are_stocks(network: str) -> None:
    stock, ours = detectors(network, torch.float32)
    inputs = [record(), record(96, 128)]
    with torch.inference_mode():
        for expected, found in zip(stock.eval()(inputs), ours.eval()(inputs), strict=True):
            expected, found = expected["instances"], found["instances"]
            assert len(expected) > 5
            assert_same_detections(found, expected)


def step(model: nn.Module, inputs: list[dict]) -> dict[str, torch.Tensor]:
    """Losses and gradients of one training step; the same proposals are sampled each time."""
    torch.manual_seed(1)
    with EventStorage():
        losses = model.train()(copy.deepcopy(inputs))
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()} | gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("network", NETWORKS)
def test_losses_and_gradients_are_stocks(
    network: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # detectron2 keeps boxes in float32, and torchvision wants scores of the same type beside them.
    nms = proposal_utils.batched_nms
    monkeypatch.setattr(proposal_utils, "batched_nms", lambda boxes, scores, *rest: nms(boxes, scores.float(), *rest))
    stock, ours = detectors(network, dtype)
    inputs = [record()]
    expected, found = step(stock, inputs), step(ours, inputs)
    assert found.keys() == expected.keys() and len(expected) > 50
    for name, value in expected.items():
        assert value.abs().max() > 0, f"{name}: a zero gradient proves nothing"
        error = (found[name] - value).norm() / value.norm()
        assert error <= tolerance, f"{name}: {error:.1e}"
