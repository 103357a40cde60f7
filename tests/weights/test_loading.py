"""Every key accounted for, all or nothing; detectors out of classifiers and back; norms that can work."""

from __future__ import annotations

import pytest
import torch
from helpers import in_memory, randomise_norms
from torch import nn

from resnext_det import UserError, compat, create_model
from resnext_det.weights import check_norm_statistics, load_strictly, loading

needs_detectron2 = pytest.mark.skipif(compat.detectron2_folder() is None, reason="no detectron2")


def classifier(num_classes: int = 10) -> nn.Module:
    return randomise_norms(create_model("resnext14_8x14d", num_classes=num_classes))


def detector(classes: int = 3, fpn: bool = False, norm: str = "FrozenBN") -> nn.Module:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    import resnext_det

    cfg = get_cfg()
    resnext_det.add_resnext_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 14, 8, 14
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_resnext_backbone", "ResNeXtC4ROIHeads"
    if fpn:
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "build_resnext_fpn_backbone", "StandardROIHeads"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    return build_model(cfg).eval()


def test_report_of_a_classifier() -> None:
    source, target = classifier(), create_model("resnext14_8x14d", num_classes=10)
    report = load_strictly(target, in_memory(source.state_dict()))
    assert str(report) == "backbone 85/85, fc 2/2"
    assert all(
        torch.equal(a, b) for a, b in zip(target.state_dict().values(), source.state_dict().values(), strict=True)
    )


def test_fc_of_another_class_count_is_new_and_reported() -> None:
    target = create_model("resnext14_8x14d", num_classes=4)
    before = target.fc.weight.clone()
    assert str(load_strictly(target, in_memory(classifier().state_dict()))) == "backbone 85/85, new: fc 2"
    assert torch.equal(target.fc.weight, before)


@needs_detectron2
def test_classifier_into_detector_and_back() -> None:
    source, target = classifier(), detector()
    report = load_strictly(target, in_memory(source.state_dict()))
    assert str(report) == "backbone 65/65, res5 20/20, new: proposal_generator 6 box_predictor 4, unused: fc 2"
    back = create_model("resnext14_8x14d", num_classes=10)
    report = load_strictly(back, in_memory(target.state_dict()))
    assert str(report) == "backbone 85/85, new: fc 2, unused: proposal_generator 6 box_predictor 4"
    for key, value in source.state_dict().items():
        if not key.endswith("num_batches_tracked") and not key.startswith("fc."):
            assert torch.equal(back.state_dict()[key], value), key


@needs_detectron2
def test_classifier_into_a_feature_pyramid() -> None:
    source, target = classifier(), detector(fpn=True)
    report = load_strictly(target, in_memory(source.state_dict()))
    assert report.loaded == {"backbone": (85, 85)}
    assert report.new == {"fpn": 16, "proposal_generator": 6, "box_head": 4, "box_predictor": 4}
    assert torch.equal(target.backbone.bottom_up.res5[0].conv2.weight, source.res5[0].conv2.weight)


@needs_detectron2
def test_detector_of_another_class_count() -> None:
    report = load_strictly(detector(classes=5), in_memory(detector(classes=3).state_dict()))
    assert report.new == {"box_predictor": 4}
    assert report.loaded["proposal_generator"] == (6, 6)


@needs_detectron2
@pytest.mark.parametrize("drop", ["proposal_generator.rpn_head.conv.weight", "roi_heads.box_predictor.cls_score.bias"])
def test_a_detector_must_be_whole(drop: str) -> None:
    state = detector().state_dict()
    del state[drop]
    target = detector()
    with pytest.raises(UserError, match=f"weights.pth: 1 tensors do not fit, such as {drop} is missing"):
        load_strictly(target, in_memory(state))
    part = "proposal_generator" if "proposal" in drop else "roi_heads.box_predictor"
    assert load_strictly(target, in_memory(state), allow_missing=[part]).new


@needs_detectron2
def test_the_line_says_how_to_do_without() -> None:
    state = {k: v for k, v in detector().state_dict().items() if not k.startswith("proposal_generator.")}
    with pytest.raises(UserError) as error:
        load_strictly(detector(), in_memory(state))
    assert str(error.value).endswith("or do without: MODEL.ALLOW_MISSING \"['proposal_generator']\"")


def test_an_allowed_part_of_another_shape_stays_new() -> None:
    state, target = classifier().state_dict(), create_model("resnext14_8x14d", num_classes=10)
    state["fc.weight"] = torch.zeros(10, 99)
    before = target.fc.weight.clone()
    assert str(load_strictly(target, in_memory(state), allow_missing=["fc"])) == "backbone 85/85, fc 1/2, new: fc 1"
    assert torch.equal(target.fc.weight, before)


def test_counters_come_along() -> None:
    source, target = classifier(), classifier()
    source.res3[0].conv2.norm.num_batches_tracked.fill_(7)
    load_strictly(target, in_memory(source.state_dict()))
    assert target.res3[0].conv2.norm.num_batches_tracked == 7


@needs_detectron2
def test_a_model_that_ends_at_res4_takes_no_res5() -> None:
    report = load_strictly(detector().backbone, in_memory(classifier().state_dict()))
    assert str(report) == "backbone 65/65, unused: res5 20 fc 2"


@needs_detectron2
def test_bn_eval_and_frozen_bn_agree() -> None:
    source = classifier()
    frozen = detector().backbone
    load_strictly(frozen, in_memory(source.state_dict()))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = source.res4(source.res3(source.res2(source.stem(x))))
        assert torch.allclose(frozen(x)["res4"], features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("res3.0.conv2.weight"), "res3.0.conv2.weight is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is not in the model"),
        (lambda s: s.update({"res2.1.conv1.weight": torch.zeros(1)}), "res2.1.conv1.weight is not in the model"),
        (
            lambda s: s.update({"stem.conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"stem.conv1.weight is \(64, 1, 7, 7\) in the file and \(64, 3, 7, 7\) in the model",
        ),
        (lambda s: s.update({"fc.weight": torch.zeros(10, 99)}), r"fc.weight is \(10, 99\) in the file"),
        (lambda s: s.pop("fc.weight"), "fc.weight is missing"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(change, message: str) -> None:
    state = classifier().state_dict()
    change(state)
    target = create_model("resnext14_8x14d", num_classes=10)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=f"weights.pth: 1 tensors do not fit, such as {message}"):
        load_strictly(target, in_memory(state))
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_another_network_is_named() -> None:
    with pytest.raises(UserError, match=r"of another network \(cardinality 8, not 1, width 14, not 64\)"):
        load_strictly(create_model("resnet14", num_classes=10), in_memory(classifier().state_dict()))


@needs_detectron2
def test_a_backbone_that_gets_nothing_is_refused_even_if_allowed() -> None:
    rpn_only = {k: v for k, v in detector().state_dict().items() if k.startswith("proposal_generator.")}
    with pytest.raises(UserError, match="gives the backbone none of its tensors"):
        load_strictly(detector(), in_memory(rpn_only), allow_missing=["backbone", "roi_heads"])


@needs_detectron2
def test_frozen_norms_of_random_weights_are_refused() -> None:
    model = detector()
    with pytest.raises(UserError, match="backbone.stem.conv1.norm is frozen with the statistics of random weights"):
        check_norm_statistics(model)
    load_strictly(model, in_memory(classifier().state_dict()))
    check_norm_statistics(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_bad_variances_are_refused(value: float) -> None:
    model = classifier()
    check_norm_statistics(model)
    model.res3[0].conv2.norm.running_var[3] = value
    with pytest.raises(UserError, match="res3.0.conv2.norm has"):
        check_norm_statistics(model)


def test_keypoints_stand_in_the_second_dimension_of_their_layer():
    """It is a transposed convolution (in, keypoints, 4, 4) with a bias (keypoints,)."""
    layer = "roi_heads.keypoint_head.score_lowres"

    def shapes(keypoints, channels=8):
        return {f"{layer}.weight": torch.zeros(channels, keypoints, 4, 4), f"{layer}.bias": torch.zeros(keypoints)}

    pairs = {name: name for name in shapes(1)}
    assert loading._class_layers_of_another_size(shapes(17), shapes(4), pairs) == [layer]
    assert loading._class_layers_of_another_size(shapes(17), shapes(17, channels=9), pairs) == []
