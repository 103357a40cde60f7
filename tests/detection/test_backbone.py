"""The registered backbones: what stock keys build, what FREEZE_AT freezes, how each norm behaves in training."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from torch import nn

from resnext_det import UserError, create_model
from resnext_det.detection.backbone import make_res5

NAMES = ("stem", "res2", "res3", "res4", "res5")


def config(**resnets) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnext_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    small = {"DEPTH": 14, "NUM_GROUPS": 4, "WIDTH_PER_GROUP": 2, "RES2_OUT_CHANNELS": 16, "STEM_OUT_CHANNELS": 8}
    for key, value in {**small, "NORM": "BN", "STRIDE_IN_1X1": False, **resnets}.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def build(cfg: CfgNode):
    return build_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_stops_the_first_stages_and_no_other(freeze_at: int) -> None:
    cfg = config(OUT_FEATURES=["res5"])
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    backbone = build(cfg).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    output = backbone(torch.randn(2, 3, 64, 64))["res5"]
    if freeze_at < 5:
        output.square().mean().backward()
    for number, name in enumerate(NAMES):
        stage = getattr(backbone, name)
        norms = [m for m in stage.modules() if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)]
        frozen = number < freeze_at
        assert norms and all(isinstance(norm, FrozenBatchNorm2d) == frozen for norm in norms), name
        assert all((p.grad is None) == frozen for p in stage.parameters()), name
        moved = [
            not torch.equal(value, before[f"{name}.{key}"])
            for key, value in stage.state_dict().items()
            if key.endswith("running_mean")
        ]
        assert not any(moved) if frozen else all(moved), name


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN"])
def test_norms_are_detectron2s_with_the_eps_of_the_config(norm: str) -> None:
    from detectron2.layers import get_norm

    from resnext_det import add_resnext_config

    cfg = config(NORM=norm, OUT_FEATURES=["res4"])
    add_resnext_config(cfg)
    cfg.MODEL.RESNETS.NORM_EPS = 1e-3
    backbone = build(cfg)
    expected = type(get_norm(norm, 4))
    found = [module for name, module in backbone.named_modules() if name.endswith(".norm")]
    assert len(found) == 13 and {type(module) for module in found} == {expected}  # stem, 3 x (3 convs, shortcut)
    assert {module.eps for module in found} == {1e-3}


def test_names_channels_and_strides_are_stocks() -> None:
    from detectron2.modeling.backbone import build_resnet_backbone

    cfg = config(DEPTH=50, NUM_GROUPS=32, WIDTH_PER_GROUP=4, RES2_OUT_CHANNELS=256, STEM_OUT_CHANNELS=64)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["stem", "res2", "res3", "res4", "res5"]
    with torch.device("meta"):
        ours, stock = build(cfg), build_resnet_backbone(cfg, ShapeSpec(channels=3))
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, stock)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 250
    assert ours.output_shape() == stock.output_shape()
    assert ours.size_divisibility == stock.size_divisibility


def test_stages_behind_the_last_output_are_not_built() -> None:
    backbone = build(config(OUT_FEATURES=["res3"]))
    assert backbone.stage_names == ("res2", "res3") and not hasattr(backbone, "res4")


def test_dilation_keeps_the_map() -> None:
    backbone = build(config(OUT_FEATURES=["res4", "res5"], RES5_DILATION=2)).eval()
    maps = backbone(torch.zeros(1, 3, 64, 64))
    assert maps["res4"].shape[2:] == maps["res5"].shape[2:] == (4, 4)
    assert backbone.output_shape()["res5"].stride == 16


def test_res5_of_the_head_is_the_classifiers() -> None:
    cfg = config(DEPTH=50, NUM_GROUPS=32, WIDTH_PER_GROUP=4, RES2_OUT_CHANNELS=256)
    with torch.device("meta"):
        head, classifier = make_res5(cfg), create_model("resnext50_32x4d").res5
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (head, classifier)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"DEPTH": 51}, "depth 51"),
        ({"NORM": ""}, "MODEL.RESNETS.NORM"),
        ({"OUT_FEATURES": ["res6"]}, "OUT_FEATURES"),
        ({"OUT_FEATURES": []}, "OUT_FEATURES"),
        ({"RES4_DILATION": 2}, "RES4_DILATION"),
        ({"RES5_MULTI_GRID": [1, 2, 4]}, "RES5_MULTI_GRID"),
        ({"STEM_TYPE": "deeplab"}, "STEM_TYPE"),
        ({"DEFORM_ON_PER_STAGE": [False, False, True, True]}, "DEFORM_ON_PER_STAGE"),
    ],
)
def test_impossible_keys_are_named(keys: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(config(**keys))


def test_importing_twice_registers_once() -> None:
    import importlib

    import resnext_det

    importlib.reload(resnext_det)
    assert "build_resnext_backbone" in BACKBONE_REGISTRY


def test_deeplabs_keys_at_stocks_values_are_taken() -> None:
    build(config(RES4_DILATION=1, RES5_MULTI_GRID=[1, 1, 1], STEM_TYPE="basic"))


@pytest.mark.parametrize("freeze_at", [-1, 6, 9])
def test_freeze_at_beyond_the_network_is_refused(freeze_at: int) -> None:
    cfg = config()
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    with pytest.raises(UserError, match=f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}"):
        build(cfg)


def test_stages_and_freeze_are_stocks() -> None:
    backbone = build(config(OUT_FEATURES=["res4"]))
    assert [stage is getattr(backbone, f"res{i + 2}") for i, stage in enumerate(backbone.stages)] == [True] * 3
    assert backbone.freeze(2) is backbone
    assert {n.split(".")[0] for n, p in backbone.named_parameters() if not p.requires_grad} == {"stem", "res2"}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in ("resnext14_8x4d", "resnext11_2x4d_cifar") for form in "abc"),
        *((name, "c") for name in ("resnetv2_14", "seresnext14_8x4d", "resnext14d_8x4d")),
    ],
)
def test_networks_can_be_scripted(name: str, form: str) -> None:
    model, x = create_model(name, num_classes=4, form=form).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_backbone_and_pyramid_can_be_scripted() -> None:
    from detectron2.export.torchscript_patch import patch_builtin_len, patch_nonscriptable_classes

    cfg = config(OUT_FEATURES=["res2", "res3", "res4", "res5"])
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res2", "res3", "res4", "res5"], 8
    x = torch.randn(1, 3, 64, 96)
    patch_nonscriptable_classes()
    for name in ("build_resnext_backbone", "build_resnext_fpn_backbone", "build_retinanet_resnext_fpn_backbone"):
        cfg.MODEL.BACKBONE.NAME = name
        backbone = build(cfg).eval()
        with patch_builtin_len():
            maps = torch.jit.script(backbone)(x)
        for key, value in backbone(x).items():
            torch.testing.assert_close(maps[key], value)
