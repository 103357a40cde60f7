"""Contradictions are refused with the settings that fix them; presets set what belongs together."""

from __future__ import annotations

import pytest
import torch

from resnext_det import UserError, create_model
from resnext_det.weights import check_metadata, preset
from resnext_det.weights.metadata import FAIR_RESNEXT, IMAGENET_RGB, MSRA, architecture_of, check_types

STOCK = {
    "depth": 50,
    "cardinality": 1,
    "width": 64,
    "stride_in_1x1": True,
    "norm_eps": 1e-5,
    "channel_order": "BGR",
    "pixel_mean": [103.530, 116.280, 123.675],
    "pixel_std": [1.0, 1.0, 1.0],
    "stem_out_channels": 64,
    "res2_out_channels": 256,
}


def test_agreement() -> None:
    check_metadata({**MSRA, "depth": 50, "recipe": "any"}, STOCK, "f")
    check_metadata({}, STOCK, "f")
    check_metadata({"pixel_mean": (103.53, 116.28, 123.675)}, STOCK, "f")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"cardinality": 32, "width": 4},
            "f: its weights contradict MODEL.RESNETS.NUM_GROUPS 1, MODEL.RESNETS.WIDTH_PER_GROUP 64 of the config; "
            "set MODEL.RESNETS.NUM_GROUPS 32 MODEL.RESNETS.WIDTH_PER_GROUP 4, or take other weights",
        ),
        (
            {"channel_order": "RGB"},
            "f: its weights contradict INPUT.FORMAT BGR of the config; set INPUT.FORMAT RGB, or take other weights",
        ),
        (
            {"pixel_std": [57.375, 57.12, 58.395]},
            "f: its weights contradict MODEL.PIXEL_STD [1.0,1.0,1.0] of the config; "
            "set MODEL.PIXEL_STD [57.375,57.12,58.395], or take other weights",
        ),
        (
            {"stride_in_1x1": False},
            "f: its weights contradict MODEL.RESNETS.STRIDE_IN_1X1 True of the config; "
            "set MODEL.RESNETS.STRIDE_IN_1X1 False, or take other weights",
        ),
        (
            {"norm_eps": 1e-3},
            "f: its weights contradict MODEL.RESNETS.NORM_EPS 1e-05 of the config; "
            "set MODEL.RESNETS.NORM_EPS 0.001, or take other weights",
        ),
        (
            {"depth": 101},
            "f: its weights contradict MODEL.RESNETS.DEPTH 50 of the config; "
            "set MODEL.RESNETS.DEPTH 101, or take other weights",
        ),
        (
            {"stem_out_channels": 32, "res2_out_channels": 64},
            "f: its weights contradict MODEL.RESNETS.STEM_OUT_CHANNELS 64, MODEL.RESNETS.RES2_OUT_CHANNELS 256 of the "
            "config; set MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 64, or take other weights",
        ),
    ],
)
def test_contradictions(found: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_metadata(found, STOCK, "f")
    assert str(error.value) == message


def test_what_no_key_can_fix() -> None:
    with pytest.raises(UserError) as error:
        check_metadata(
            {"channel_order": "BGR", "depth": 101},
            STOCK | {"channel_order": "RGB"},
            "f",
            {"channel_order": "", "depth": "MODEL.NAME"},
        )
    assert str(error.value) == (
        "f: its weights contradict channel_order RGB, MODEL.NAME 50 of the config; "
        "no key changes channel_order: take other weights"
    )


def test_preset() -> None:
    assert preset(FAIR_RESNEXT) == {
        "INPUT.FORMAT": "BGR",
        "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.NORM_EPS": 1e-5,
    }
    assert preset(IMAGENET_RGB)["MODEL.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    with pytest.raises(UserError, match="^f: does not say its channel_order, pixel_mean, pixel_std, "):
        preset({"stride_in_1x1": True, "norm_eps": 1e-5}, "f")


PAPER = {
    "stem_out_channels": 64,
    "res2_out_channels": 256,
    "cifar": False,
    "form": "c",
    "residual": True,
    "kind": "plain",
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet101", {"depth": 101, "cardinality": 1, "width": 64}),
        ("resnext101_64x4d", {"depth": 101, "cardinality": 64, "width": 4}),
        ("resnext29_8x64d_cifar", {"depth": 29, "cardinality": 8, "width": 64, "cifar": True}),
    ],
)
def test_architecture_is_read_off_the_tensors(name: str, expected: dict) -> None:
    with torch.device("meta"):
        assert architecture_of(create_model(name).state_dict()) == PAPER | expected


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("form", ["a", "b", "c"])
def test_architecture_of_the_other_forms(form: str, residual: bool) -> None:
    channels = {"stem_out_channels": 32, "res2_out_channels": 64}
    with torch.device("meta"):
        state = create_model("resnext14_8x14d", form=form, residual=residual, **channels).state_dict()
    expected = {"depth": 14, "cardinality": 8, "width": 14, "cifar": False, "form": form, "residual": residual}
    expected["kind"] = "plain"
    assert architecture_of(state) == expected | channels


def test_a_file_without_res5_is_no_smaller_network() -> None:
    with torch.device("meta"):
        state = create_model("resnet14").state_dict()
    assert "depth" not in architecture_of({name: t for name, t in state.items() if not name.startswith("res5.")})


@pytest.mark.parametrize(
    "bad",
    [
        {"channel_order": "GBR"},
        {"pixel_mean": []},
        {"pixel_std": [1.0, 0.0, 1.0]},
        {"depth": "50"},
        {"stride_in_1x1": 1},
        {"norm_eps": "1e-5"},
    ],
)
def test_metadata_of_the_wrong_kind(bad: dict) -> None:
    (key,) = bad
    with pytest.raises(UserError, match=f"^f: its metadata says {key} = "):
        check_types(bad, "f")
