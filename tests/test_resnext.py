"""The networks against published counts and against torchvision with the same weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from resnext_det import create_model
from resnext_det.paper.analysis import analyze, totals

PARAMETERS = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_64x4d": 83_455_272,
    "resnext101_32x8d": 88_791_336,
}


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names as ours."""
    ours = {}
    for key, value in state.items():
        for stage in range(1, 5):
            key = key.replace(f"layer{stage}.", f"res{stage + 1}.")
        key = key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        for i in (1, 2, 3):
            key = key.replace(f"bn{i}.", f"conv{i}.norm.")
        ours[key if key.startswith(("res", "fc")) else f"stem.{key}"] = value
    return ours


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name).parameters()) == count


@pytest.mark.parametrize(("name", "millions"), [("resnext29_8x64d_cifar", 34.4), ("resnext29_16x64d_cifar", 68.1)])
def test_cifar_sizes_of_table_7(name: str, millions: float) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in create_model(name, num_classes=10).parameters())
    assert int(count / 1e5) / 10 == millions  # the paper cuts 68.16 to 68.1


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"])
def test_logits_equal_torchvision(name: str) -> None:
    theirs = getattr(torchvision.models, name)().eval()
    ours = create_model(name).eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    x = torch.randn(1, 3, 96, 80)
    with torch.inference_mode():
        expected, logits = theirs(x), ours(x)
    assert (logits - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(("name", "published"), [("resnet50", 4.09), ("resnext50_32x4d", 4.23)])
def test_cost_of_table_1(name: str, published: float) -> None:
    """GFLOPs (multiply-adds) that torchvision publishes; the paper's: 4.1 and 4.2."""
    parameters, multiply_adds = totals(analyze(name))
    assert parameters == PARAMETERS[name]
    assert multiply_adds / 1e9 == pytest.approx(published, rel=0.01)


def test_resnet_200_has_its_layers() -> None:
    with torch.device("meta"):
        model = create_model("resnet200")
    assert sum(len(getattr(model, stage)) for stage in model.stage_names) * 3 + 2 == 200
