"""Files there and back through another library's names and format, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import randomise_norms, relative_error

from resnext_det import UserError, compat, create_model
from resnext_det.variants import list_models
from resnext_det.weights import read_checkpoint, save_checkpoint
from resnext_det.weights.conversion import check_whole, convert
from resnext_det.weights.metadata import IMAGENET_RGB, architecture_of


@pytest.mark.parametrize("to", ["native", "torchvision", "timm"])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["resnet14", "resnext26_32x4d", "resnext29_2x64d_cifar"])
def test_there_and_back(name: str, ending: str, to: str, tmp_path: Path) -> None:
    state = randomise_norms(create_model(name, num_classes=10)).state_dict()
    metadata = {**IMAGENET_RGB, "class_names": [str(i) for i in range(10)], "recipe": "paper"}
    save_checkpoint(tmp_path / "a.pth", state, metadata)
    convert(tmp_path / "a.pth", tmp_path / f"b{ending}", to)
    convert(tmp_path / f"b{ending}", tmp_path / "c.pth")
    back = read_checkpoint(tmp_path / "c.pth")
    assert back.tensors.keys() == state.keys() and all(torch.equal(back.tensors[k], state[k]) for k in state)
    assert {key: back.metadata[key] for key in metadata} == metadata


def test_torchvision_takes_what_was_written_for_it(tmp_path: Path) -> None:
    from torchvision.models import resnext50_32x4d

    ours = randomise_norms(create_model("resnext50_32x4d"))
    save_checkpoint(tmp_path / "a.pth", ours.state_dict(), {})
    convert(tmp_path / "a.pth", tmp_path / "b.pth", "torchvision")
    theirs = resnext50_32x4d().eval()
    theirs.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True)["model"])
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(theirs(x), ours(x)) < 1e-5


def test_timm_takes_what_was_written_for_it(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    ours = randomise_norms(create_model("resnet26", num_classes=10))
    save_checkpoint(tmp_path / "a.pth", ours.state_dict(), {})
    x = torch.rand(1, 3, 64, 64)
    for ending in (".pth", ".safetensors"):
        convert(tmp_path / "a.pth", tmp_path / f"b{ending}", "timm")
        theirs = timm.create_model("resnet26", num_classes=10, checkpoint_path=str(tmp_path / f"b{ending}")).eval()
        with torch.no_grad():
            assert relative_error(theirs(x), ours(x)) < 1e-5


@pytest.mark.skipif(compat.detectron2_folder() is None, reason="no detectron2")
def test_a_detector_leaves_its_heads_behind(tmp_path: Path) -> None:
    state = randomise_norms(create_model("resnext14_8x14d", num_classes=10)).state_dict()
    detector = {
        ("roi_heads." if key.startswith("res5.") else "backbone.") + key: value
        for key, value in state.items()
        if not key.startswith("fc.")
    }
    detector |= {"roi_heads.box_predictor.cls_score.bias": torch.ones(4)}
    save_checkpoint(tmp_path / "a.pth", detector, {})
    _, dropped = convert(tmp_path / "a.pth", tmp_path / "b.pth", "torchvision")
    assert dropped == {"box_predictor": 1}
    _, dropped = convert(tmp_path / "a.pth", tmp_path / "c.pth", "native")
    assert dropped == {} and read_checkpoint(tmp_path / "c.pth").tensors.keys() == detector.keys()
    back = read_checkpoint(tmp_path / "b.pth").tensors
    assert all(torch.equal(back[key], state[key]) for key in state if not key.startswith("fc."))


@pytest.mark.parametrize("how", [{"form": "a"}, {"form": "b"}, {"residual": False}, {"stem_out_channels": 8}])
def test_the_paper_s_other_networks_stay_native(how: dict, tmp_path: Path) -> None:
    state = create_model("resnext14_8x14d", num_classes=3, **how).state_dict()
    save_checkpoint(tmp_path / "a.pth", state, {})
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert read_checkpoint(tmp_path / "b.safetensors").tensors.keys() == state.keys()
    if "stem_out_channels" not in how:
        (key,) = how
        with pytest.raises(UserError, match=f"a.pth: has {key} {how[key]}, which timm cannot express; keep native"):
            convert(tmp_path / "a.pth", tmp_path / "c.pth", "timm")
    del state["res4.0.conv2.weight" if how.get("form", "c") == "c" else "res4.0.paths.7.conv2.weight"]
    with pytest.raises(UserError, match="conv2.weight is missing"):
        check_whole(state, architecture_of(state), "f")


@pytest.mark.parametrize("name", list_models())
def test_every_network_of_the_family_is_whole(name: str) -> None:
    with torch.device("meta"):
        state = create_model(name).state_dict()
    check_whole(state, architecture_of(state), "f")
    del state["res4.0.conv3.weight"]
    with pytest.raises(UserError, match="f: res4.0.conv3.weight is missing"):
        check_whole(state, architecture_of(state), "f")
