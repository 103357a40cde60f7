"""What others do to the C4 head's res5 after it was built, and the extra norm of the transfer benchmarks."""

from __future__ import annotations

import copy

import pytest
import torch
from agreement import assert_same_detections
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from resnext_det import UserError, add_resnext_config
from resnext_det.detection.c4_head import ResNeXtC4ROIHeads
from resnext_det.detection.initial_weights import load_initial_weights
from resnext_det.detection.optimize import optimize_for_inference
from resnext_det.weights import save_checkpoint


@ROI_HEADS_REGISTRY.register()
class StockHeadWithNorm(Res5ROIHeads):
    """The transfer benchmarks' head on detectron2's own classes: one more norm behind res5."""

    @classmethod
    def _build_res5_block(cls, cfg):
        stage, channels = super()._build_res5_block(cfg)
        stage.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return stage, channels


@ROI_HEADS_REGISTRY.register()
class OurHeadWithNormAfterwards(ResNeXtC4ROIHeads):
    """The same by a subclass of ours that adds it after the constructor, as MoCo's does."""

    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        self.res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, self.res5[-1].out_channels))


def config(norm="BN", mask=False, heads="ResNeXtC4ROIHeads", extra=True):
    cfg = get_cfg()
    add_resnext_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.FREEZE_AT = "cpu", 0
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone" if heads.startswith("Stock") else "build_resnext_backbone"
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.RESNEXT.RES5_EXTRA_NORM = heads, extra
    keys = cfg.MODEL.RESNETS
    keys.NUM_GROUPS, keys.WIDTH_PER_GROUP, keys.RES2_OUT_CHANNELS, keys.STEM_OUT_CHANNELS = 4, 2, 8, 8
    keys.NORM, keys.STRIDE_IN_1X1 = norm, False
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 3, 32
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 0.0, 14
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 60
    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_MASK_HEAD.NAME = mask, "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    return cfg


def build(cfg, state=None):
    torch.manual_seed(3)
    model = build_model(cfg)
    if state is not None:
        model.load_state_dict(state)
        return model
    for m in model.modules():
        if isinstance(m, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            m.weight.data.uniform_(0.5, 1.0)
            m.bias.data.uniform_(-0.2, 0.2)
            m.running_var.uniform_(0.5, 1.5)
            m.running_mean.uniform_(-0.2, 0.2)
    return model


def batch(dtype=torch.float32):
    generator, inputs = torch.Generator().manual_seed(4), []
    for side in (160, 128):
        targets = Instances((128, side), gt_classes=torch.tensor([1, 2]))
        targets.gt_boxes = Boxes(torch.tensor([[8.0, 8, 60, 70], [40, 30, 120, 110]]))
        targets.gt_masks = BitMasks(torch.rand(2, 128, side, generator=generator) > 0.5)
        inputs.append({"image": torch.rand(3, 128, side, generator=generator).to(dtype) * 255, "instances": targets})
    return inputs


def losses_and_gradients(model, dtype):
    model.train().to(dtype).zero_grad()
    rpn = model.proposal_generator
    # detectron2 decodes boxes in float32, and NMS wants the logits in the same type.
    rpn.predict_proposals = lambda anchors, logits, *rest: type(rpn).predict_proposals(
        rpn, anchors, [x.float() for x in logits], *rest
    )
    torch.manual_seed(5)
    with EventStorage():
        losses = model(batch(dtype))
    sum(losses.values()).backward()
    return {**losses, **{name: p.grad for name, p in model.named_parameters()}, **dict(model.named_buffers())}


def compare(ours, stock):
    """Every loss, gradient and statistic to 1e-9 in float64; in float32 to 1e-4, or to what rounding is in stock."""
    exact, own_exact = (losses_and_gradients(model, torch.float64) for model in (stock, ours))
    assert own_exact.keys() == exact.keys() and len(exact) > 200
    for name, value in exact.items():
        tolerance = 1e-9 * max(value.abs().max().item(), 1e-3)
        torch.testing.assert_close(own_exact[name], value, rtol=1e-9, atol=tolerance, msg=name)
    found, own = (losses_and_gradients(model, torch.float32) for model in (stock, ours))
    for name in (name for name in found if name.startswith("loss")):
        torch.testing.assert_close(own[name], found[name], rtol=1e-4, atol=1e-6, msg=name)
    # One vector, and stock's own rounding: what batch norms leave of single gradients is mostly that.
    names = [name for name, _ in stock.named_parameters()]
    exact, found, own = (torch.cat([x[name].flatten().double() for name in names]) for x in (exact, found, own))
    assert (own - found).norm() <= max(1e-4 * exact.norm(), (found - exact).norm())


@pytest.mark.parametrize("heads", ["ResNeXtC4ROIHeads", "OurHeadWithNormAfterwards"])
@pytest.mark.parametrize(("norm", "mask"), [("BN", False), ("BN", True), ("FrozenBN", False)])
def test_extra_norm_equals_stocks(norm, mask, heads, caplog):
    stock = build(config(norm, mask, "StockHeadWithNorm"))
    ours = build(config(norm, mask, heads, extra=heads == "ResNeXtC4ROIHeads"), stock.state_dict())
    assert "roi_heads.res5.norm.weight" in ours.state_dict() and ours.roi_heads.plan() is not None
    compare(ours, stock)
    ours.float().eval(), stock.float().eval()
    ours.load_state_dict(stock.state_dict())
    with torch.no_grad():
        expected = [output["instances"] for output in stock(batch())]
        found = [output["instances"] for output in ours(batch())]
    assert len(expected[0]) > 20 and not caplog.records
    for one, other in zip(found, expected, strict=True):
        assert_same_detections(one, other)
        if mask:
            assert (one.pred_masks.sum() - other.pred_masks.sum()).abs() <= 0.01 * other.pred_masks.sum()


@pytest.mark.parametrize(
    ("dtype", "backend", "tolerance"),
    [("fp32", "torch", 1e-5), ("bf16", "torch", 0.05), ("fp32", "openvino", 1e-5), ("int8", "auto", 0.1)],
)
@torch.no_grad()
def test_optimized_copies_compute_the_extra_norm(dtype, backend, tolerance):
    model = build(config()).eval()
    optimized = optimize_for_inference(model, dtype, backend=backend, calibration=[batch()])
    features = [model.backbone(model.preprocess_image(batch()).tensor)["res4"]]
    boxes = [Boxes(torch.rand(40, 4) * 60 + torch.tensor([0, 0, 60.0, 60]))] * 2
    expected = model.roi_heads.region_vectors(features, boxes)
    result = optimized.roi_heads.region_vectors(features, boxes)
    assert (result - expected).norm() <= tolerance * expected.norm() and hasattr(optimized.roi_heads.res5, "norm")
    maps = optimized.roi_heads._shared_roi_transform(features, boxes)
    assert maps.shape == (80, 64, 7, 7)
    assert (maps.mean((2, 3)) - expected).norm() <= tolerance * expected.norm()


def test_a_classifier_leaves_the_extra_norm_new_and_an_evaluation_refuses(tmp_path):
    model = build(config())
    trunk = {k.split(".", 1)[1]: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    head = {k.removeprefix("roi_heads."): v for k, v in model.state_dict().items() if k.startswith("roi_heads.res5.")}
    trunk |= {k: v for k, v in head.items() if ".norm." not in k[:10]}
    save_checkpoint(
        tmp_path / "classifier.pth", {**trunk, "fc.weight": torch.zeros(5, 64), "fc.bias": torch.zeros(5)}, {}
    )
    cfg = config()
    cfg.MODEL.WEIGHTS = str(tmp_path / "classifier.pth")
    fresh = build(cfg)
    load_initial_weights(cfg, fresh)
    assert torch.equal(fresh.roi_heads.res5[0].conv1.weight, model.roi_heads.res5[0].conv1.weight)
    with pytest.raises(UserError, match=r"has no weights for .*res5\.norm"):
        load_initial_weights(cfg, fresh, allow_new_heads=False)


class LoRA(nn.Module):
    """A low-rank addition around a convolution."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.extra = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False).to(conv.weight.dtype)

    def forward(self, x):
        return self.conv(x) + self.extra(x)


class Scaled(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return 2 * self.module(x)


def wrap(head, block, name):
    setattr(head.res5[block], name, LoRA(getattr(head.res5[block], name)))


FOREIGN = {
    "dropout": lambda head: head.res5.add_module("drop", nn.Dropout(1.0)),
    "wrapped layer": lambda head: wrap(head, 1, "conv1"),
    "wrapped first layer": lambda head: wrap(head, 0, "conv1"),
    "wrapped stage": lambda head: setattr(head, "res5", Scaled(head.res5)),
    "another stage": lambda head: setattr(head, "res5", nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1).double())),
    "another class": lambda head: setattr(head.res5[2], "forward", lambda x: x * 3),
    "weights in parts": lambda head: nn.utils.parametrizations.weight_norm(head.res5[1].conv2),
    "half of it": lambda head: setattr(head, "res5", head.res5[:2]),
}
FAST = ("dropout", "wrapped layer", "another class", "weights in parts", "half of it")


def transformed(head, training):
    head.train(training)
    torch.manual_seed(1)
    x = torch.randn(2, 32, 20, 24).double().requires_grad_()
    boxes = [Boxes(torch.rand(n, 4) * 150 + torch.tensor([0, 0, 150, 150.0])) for n in (25, 30)]
    y = head._shared_roi_transform([x], boxes)
    y.square().sum().backward()
    gradients = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
    return {"y": y, "x": x.grad, **gradients}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_foreign_runs_as_it_is(name, training, caplog):
    results = []
    for fast in (True, False):
        torch.manual_seed(0)
        head = build(config(extra=False)).roi_heads.double()
        head.fast = fast
        torch.manual_seed(0)
        FOREIGN[name](head)
        results.append(transformed(head, training))
        assert (head.plan() is not None) == (fast and name in FAST)
    for key, value in results[1].items():
        torch.testing.assert_close(results[0][key], value, rtol=1e-9, atol=1e-9, msg=key)
    assert results[0].keys() == results[1].keys()
    assert len(caplog.records) == (name != "half of it"), "reported once, though there were two passes"


@torch.no_grad()
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_an_optimized_copy_keeps_what_is_foreign(backend):
    model = build(config(extra=False)).eval()
    wrap(model.roi_heads, 1, "conv1")
    expected = [output["instances"] for output in model(batch())]
    optimized = optimize_for_inference(model, "fp32", backend=backend)
    assert isinstance(optimized.roi_heads.res5[1].conv1, LoRA)
    for one, other in zip(optimized(batch()), expected, strict=True):
        assert_same_detections(one["instances"], other)


@pytest.mark.parametrize(
    ("place", "kind"),
    [(p, f"register_{k}") for p in ("res5", "res5.1", "pooler") for k in ("forward_hook", "forward_pre_hook")]
    + [("res5.2.conv2", "register_forward_hook"), ("res5.2", "register_full_backward_hook")]
    + [(f"res5.{p}norm", f"register_forward_{k}hook") for p in ("0.conv1.", "0.shortcut.", "") for k in ("", "pre_")],
)
def test_hooks_see_what_stocks_see(place, kind):
    seen, state = [], None
    for cls in ("ResNeXtC4ROIHeads", "StockHeadWithNorm"):
        model = build(config(extra=True, heads=cls), state)
        state = copy.deepcopy(model.state_dict())
        module, calls = model.roi_heads.get_submodule(place), []
        handle = getattr(module, kind)(lambda m, *given, calls=calls: calls.append(given[-1]))
        if cls == "ResNeXtC4ROIHeads":
            assert (model.train().roi_heads.plan() is None) == (not place.endswith("norm"))
            assert model.eval().roi_heads.plan() is None, "a constant norm is folded, not called"
        losses_and_gradients(model, torch.float64)
        handle.remove()
        seen.append(calls)
        number = len(calls)
        losses_and_gradients(model, torch.float64)
        assert len(calls) == number == 1
    (ours,), (stock,) = seen
    for one, other in zip(*([x] if isinstance(x, torch.Tensor) else x for x in (ours, stock)), strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@ROI_HEADS_REGISTRY.register()
class HeadWithMaxPooling(ResNeXtC4ROIHeads):
    """Reads the regions' maps: stock's promise is (R, C, 7, 7), with a mask head or without."""

    def _shared_roi_transform(self, features, boxes):
        y = super()._shared_roi_transform(features, boxes)
        self.shape = tuple(y.shape)
        return y.amax((2, 3), keepdim=True)


@pytest.mark.parametrize("optimized", [None, "torch", "openvino"])
@torch.no_grad()
def test_a_subclass_gets_maps(optimized):
    model = build(config(heads="HeadWithMaxPooling", extra=False)).eval()
    model.roi_heads.fast = False
    expected = [output["instances"] for output in model(batch())]
    model.roi_heads.fast = True
    model = model if optimized is None else optimize_for_inference(model, "fp32", backend=optimized)
    for one, other in zip(model(batch()), expected, strict=True):
        assert_same_detections(one["instances"], other)
    assert model.roi_heads.shape[1:] == (64, 7, 7)
