"""The fast C4 head against its plain path and against stock detectron2's: results, gradients, memory bounds, masks."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from resnext_det.detection.c4_head import ResNeXtC4ROIHeads


def config(norm="FrozenBN", stride_in_1x1=False, mask=False, pooler="ROIAlignV2", bins=14):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4, 2
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = norm, stride_in_1x1
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 3, 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = pooler, bins
    cfg.MODEL.MASK_ON = mask
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 0, 8
    return cfg


SHAPES = {"res4": ShapeSpec(channels=32, stride=16)}


def build(cls, cfg, **attributes):
    head = cls(cfg, SHAPES).double()
    torch.manual_seed(0)
    head.load_state_dict(ResNeXtC4ROIHeads(cfg, SHAPES).state_dict())
    torch.manual_seed(0)
    for _, m in sorted(head.named_modules()):  # the two classes list a block's layers in another order
        if isinstance(m, (FrozenBatchNorm2d, torch.nn.BatchNorm2d)):
            for tensor in (m.weight.data, m.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (m.bias.data, m.running_mean):
                tensor.uniform_(-0.5, 0.5)
    for name, value in attributes.items():
        assert hasattr(head, name)
        setattr(head, name, value)
    return head


def boxes(*counts):
    return [Boxes(torch.rand(n, 4).double() * 150 + torch.tensor([-10.0, -10, 150, 150])) for n in counts]


def passed(head, regions, training):
    """Sum of squares' value and gradients, and the norms' buffers after the pass."""
    head.train(training)
    torch.manual_seed(1)
    x = torch.randn(2, 32, 20, 24).double().requires_grad_()
    y = head._shared_roi_transform([x], regions).mean((2, 3))
    y.square().sum().backward()
    gradients = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
    return {"y": y, "x": x.grad, **gradients, **dict(head.named_buffers())}


def assert_equal(results, expected, tolerance=1e-9):
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bins", [14, 7])
def test_results_and_gradients_are_stocks(norm, stride_in_1x1, training, bins):
    cfg = config(norm, stride_in_1x1, bins=bins)
    regions = boxes(25, 30)
    expected = passed(build(Res5ROIHeads, cfg), regions, training)
    assert_equal(passed(build(ResNeXtC4ROIHeads, cfg), regions, training), expected)
    assert expected["y"].abs().max() > 0.01 and len(expected) > 10


@pytest.mark.parametrize("counts", [(1, 0), (25, 30)])  # fewer bins than the maps' positions, and more
@pytest.mark.parametrize("chunk_size", [0, 7, 100])
@pytest.mark.parametrize("recompute", [False, True])
def test_chunks_and_recomputation_change_nothing(counts, chunk_size, recompute):
    regions = boxes(*counts)
    expected = passed(build(ResNeXtC4ROIHeads, config(), fast=False), regions, True)
    head = build(ResNeXtC4ROIHeads, config(), chunk_size=chunk_size, recompute=recompute)
    assert_equal(passed(head, regions, True), expected)
    with torch.no_grad():
        torch.manual_seed(1)
        y = head._shared_roi_transform([torch.randn(2, 32, 20, 24).double()], regions).mean((2, 3))
    torch.testing.assert_close(y, expected["y"].detach(), rtol=1e-9, atol=1e-9)


def test_training_batch_norm_sees_the_whole_batch_whatever_the_chunks():
    regions = boxes(25, 30)
    expected = passed(build(ResNeXtC4ROIHeads, config("BN"), fast=False), regions, True)
    assert_equal(passed(build(ResNeXtC4ROIHeads, config("BN"), chunk_size=4, recompute=True), regions, True), expected)


def test_no_regions():
    y = build(ResNeXtC4ROIHeads, config()).eval()._shared_roi_transform([torch.randn(1, 32, 9, 9).double()], boxes(0))
    assert y.mean((2, 3)).shape == (0, 64)


def test_other_poolers_take_the_plain_path_and_say_so(caplog):
    head = build(ResNeXtC4ROIHeads, config(pooler="ROIAlign"))
    regions = boxes(5, 6)
    assert_equal(passed(head, regions, True), passed(build(Res5ROIHeads, config(pooler="ROIAlign")), regions, True))
    passed(head, regions, True)
    assert caplog.text.count("POOLER_TYPE") == 1


def losses_and_detections(head, mask):
    torch.manual_seed(2)
    head.float()  # detectron2 decodes boxes in float32 only
    features = {"res4": torch.randn(1, 32, 20, 24)}
    proposals = Instances((320, 384), proposal_boxes=Boxes(torch.rand(40, 4) * 150 + torch.tensor([0, 0, 150, 150.0])))
    proposals.objectness_logits = torch.zeros(40)
    targets = Instances(
        (320, 384), gt_boxes=Boxes(proposals.proposal_boxes.tensor[:2]), gt_classes=torch.tensor([0, 2])
    )
    if mask:
        targets.gt_masks = BitMasks(torch.rand(2, 320, 384) > 0.5)
    with EventStorage():
        _, losses = head.train()(None, features, [proposals], [targets])
    sum(losses.values()).backward()
    head.box_predictor.test_score_thresh = 0.0
    with torch.no_grad():
        (detections,), _ = head.eval()(None, features, [proposals])
    gradients = {name: p.grad for name, p in head.named_parameters()}
    out = {**losses, **gradients, "boxes": detections.pred_boxes.tensor, "scores": detections.scores}
    return out | ({"masks": detections.pred_masks} if mask else {})


@pytest.mark.parametrize("mask", [False, True])
def test_losses_and_detections_are_stocks(mask):
    cfg = config(mask=mask)
    expected = losses_and_detections(build(Res5ROIHeads, cfg), mask)
    assert_equal(losses_and_detections(build(ResNeXtC4ROIHeads, cfg, chunk_size=16), mask), expected, 2e-4)
    assert len(expected["scores"]) > 10


def test_two_training_passes_have_equal_bits():
    regions = boxes(25, 30)
    first, second = (passed(build(ResNeXtC4ROIHeads, config()), regions, True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def trained_detector():
    """A whole detector's weights after three steps of SGD in deterministic mode, from one seed."""
    cfg = config()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_resnext_backbone", "ResNeXtC4ROIHeads"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.BACKBONE.FREEZE_AT = 8, 0
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    torch.manual_seed(3)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    batch = []
    for side in (96, 128):
        targets = Instances((96, side), gt_boxes=Boxes(torch.tensor([[8.0, 8, 60, 70]])), gt_classes=torch.tensor([1]))
        batch.append({"image": torch.rand(3, 96, side) * 255, "instances": targets})
    with EventStorage():
        for _ in range(3):
            loss = sum(model(batch).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.state_dict()


def test_two_training_runs_have_equal_bits_in_deterministic_mode():
    torch.use_deterministic_algorithms(True)
    try:
        first, second = trained_detector(), trained_detector()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(value.isfinite().all() for value in first.values())
