"""The other kinds of network against timm's with the same tensors: classifier, weights' names, trunk and detector."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from resnext_det import UserError, compat, create_model
from resnext_det.paper.analysis import analyze, totals
from resnext_det.variants import parse_name
from resnext_det.weights import load_strictly, read_checkpoint
from resnext_det.weights.conversion import convert

timm = pytest.importorskip("timm")
NETWORKS = ["resnetv2_50", "seresnext50_32x4d", "resnext50d_32x4d", "resnet50d", "seresnet50"]


def published(name: str, folder, **arguments):
    """timm's network with norms of its own each, in evaluation, and its file."""
    model = timm.create_model(name, pretrained=False, **arguments)
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        torch.nn.init.uniform_(norm.weight, -0.5, 1.0)
        torch.nn.init.normal_(norm.bias, std=0.2)
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.7, 1.3)
    save_file(model.state_dict(), folder / "theirs.safetensors")
    return model.eval(), folder / "theirs.safetensors"


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_equal_timms(name: str, tmp_path) -> None:
    theirs, file = published(name, tmp_path)
    checkpoint = read_checkpoint(file)
    assert checkpoint.metadata["kind"] == parse_name(name).kind and checkpoint.metadata["depth"] == 50
    convert(file, tmp_path / "ours.pth")  # every tensor has its place and its shape
    ours = create_model(name).eval()
    load_strictly(ours, read_checkpoint(tmp_path / "ours.pth"))
    x = torch.randn(2, 3, 75, 96)  # odd maps: the pooled shortcut rounds up
    with torch.inference_mode():
        expected, logits = theirs(x), ours(x)
    assert (logits - expected).norm() / expected.norm() < 1e-5


def test_resnet_200_is_the_pre_activation_network() -> None:
    """Its parameters: 64,673,832 in timm's construction with (3, 24, 36, 3) blocks."""
    from timm.models.resnetv2 import ResNetV2

    with torch.device("meta"):
        theirs = ResNetV2(
            layers=[3, 24, 36, 3], conv_layer=timm.layers.create_conv2d, norm_layer=timm.layers.BatchNormAct2d
        )
        ours = create_model("resnetv2_200")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert sum(isinstance(m, torch.nn.Conv2d) for m in ours.modules()) == 3 * 66 + 1 + 4  # and fc: 200, shortcuts apart


def test_big_transfer_is_another_function(tmp_path) -> None:
    save_file(timm.create_model("resnetv2_50x1_bit").state_dict(), tmp_path / "bit.safetensors")
    with pytest.raises(UserError, match="standardized weights"):
        read_checkpoint(tmp_path / "bit.safetensors")


@pytest.mark.parametrize("name", ["seresnetv2_50", "resnext50d", "resnet50d_cifar", "resnetv2_50d", "resnet50_32x4d"])
def test_kinds_do_not_mix(name: str) -> None:
    with pytest.raises(UserError, match="unknown model"):
        parse_name(name)


def test_a_kind_has_one_form() -> None:
    with pytest.raises(UserError, match="choose from c"):
        create_model("resnextv2_14_2x2d", form="a")


@pytest.mark.parametrize("name", ["resnextv2_29_8x64d_cifar", "resnextv2_50_32x4d"])
def test_a_pre_activated_network_costs_what_the_plain_one_does(name: str) -> None:
    plain = name.replace("v2_", "")
    assert totals(analyze(name))[1] == totals(analyze(plain))[1]


def test_pre_activation_in_order() -> None:
    """Identity shortcuts carry the sum untouched: with a branch of zeros the block returns its input."""
    model = create_model("resnextv2_14_2x2d", 5, res2_out_channels=16)
    block = create_model("resnextv2_26_2x2d", 5, res2_out_channels=16).res2[1]
    torch.nn.init.zeros_(block.conv3.weight)
    x = torch.randn(2, 16, 9, 9)
    assert torch.equal(block(x), x) and (x < 0).any(), "no ReLU behind the sum"
    assert [name for name, _ in model.res4.named_children()] == ["0"]
    assert [name for name, _ in model.res5.named_children()] == ["0", "end"]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.skipif(compat.detectron2_folder() is None, reason="no detectron2")
@pytest.mark.parametrize("kind", ["v2", "se", "d"])
def test_a_detector_of_that_kind_holds_the_classifiers_network(kind: str, tmp_path) -> None:
    """Backbone and res5 of the C4 head, one behind the other, are the classifier's trunk."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    import resnext_det
    from resnext_det.detection import optimize_for_inference
    from resnext_det.variants import Variant

    cfg = get_cfg()
    resnext_det.add_resnext_config(cfg)
    keys = cfg.MODEL.RESNETS
    keys.DEPTH, keys.NUM_GROUPS, keys.WIDTH_PER_GROUP, keys.NORM, keys.STRIDE_IN_1X1 = 14, 4, 2, "FrozenBN", False
    cfg.MODEL.DEVICE, cfg.MODEL.RESNEXT.KIND = "cpu", kind
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_resnext_backbone", "ResNeXtC4ROIHeads"
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 20, 0.0
    classifier = create_model(Variant(14, 4, 2, kind=kind).name, 7)
    for norm in [m for m in classifier.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        torch.nn.init.uniform_(norm.weight, -0.5, 1.0)
        norm.running_var.uniform_(0.7, 1.3)
    classifier.eval()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    model = build_model(cfg).eval()
    report = load_strictly(model, read_checkpoint(tmp_path / "classifier.pth"))
    assert set(report.new) == {"proposal_generator", "box_predictor"} and set(report.unused) == {"fc"}
    x = torch.randn(1, 3, 96, 128)
    image = [{"image": torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)}]
    with torch.inference_mode():
        features = model.roi_heads.res5(model.backbone(x)["res4"])
        expected = classifier.res5(classifier.res4(classifier.res3(classifier.res2(classifier.stem(x)))))
        torch.testing.assert_close(features, expected)
        boxes = model(image)[0]["instances"].pred_boxes.tensor
        fast = optimize_for_inference(model, "fp32")(image)[0]["instances"].pred_boxes.tensor
    assert len(boxes) and model.roi_heads.plan() is None  # the plain path
    torch.testing.assert_close(fast, boxes, rtol=1e-3, atol=1e-2)
