"""The networks against published counts and against torchvision with the same weights."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnext_det import UserError, create_model
from resnext_det.paper.analysis import analyze, totals
from resnext_det.resnext import GhostBatchNorm2d

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


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_ghost_statistics_are_those_of_each_device(memory) -> None:
    """Against plain batch norms, one for each group of images, whose gradients and running statistics are averaged."""
    ghost = GhostBatchNorm2d(6, images=4).double()
    ghost.load_state_dict({**ghost.state_dict(), "weight": torch.rand(6), "bias": torch.rand(6)})
    devices = [copy.deepcopy(ghost) for _ in range(3)]
    x = torch.randn(12, 6, 5, 7, dtype=torch.double).to(memory_format=memory).requires_grad_()
    y = ghost(x)
    y.pow(3).sum().backward()
    gradient, x.grad = x.grad, None
    expected = torch.empty_like(y)
    for i, device in enumerate(devices):
        expected[i::3] = nn.BatchNorm2d.forward(device, x[i::3])
    torch.testing.assert_close(y, expected)
    expected.pow(3).sum().backward()
    torch.testing.assert_close(gradient, x.grad)
    torch.testing.assert_close(ghost.weight.grad, sum(d.weight.grad for d in devices))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ghost, name), torch.stack([getattr(d, name) for d in devices]).mean(0))
    assert ghost.num_batches_tracked == 1
    assert not torch.allclose(y, nn.BatchNorm2d.forward(copy.deepcopy(devices[0]), x))
    with pytest.raises(UserError, match="does not divide the 6 images"):
        ghost(torch.randn(6, 6, 5, 7, dtype=torch.double))
    assert ghost.eval()(torch.randn(6, 6, 5, 7, dtype=torch.double)).shape == (6, 6, 5, 7)


def test_first_weights_of_the_last_layer() -> None:
    """Torch's uniform ones on request, with a bias of zero, as the authors' code; small normal ones otherwise."""
    theirs, ours = (create_model("resnext14_2x2d", 1000, fc_std=std).fc for std in (0.0, 0.01))
    bound = 1 / theirs.in_features**0.5
    assert 0.99 * bound < theirs.weight.abs().max() <= bound and not theirs.bias.any()
    assert theirs.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert ours.weight.std().item() == pytest.approx(0.01, rel=0.02) and not ours.bias.any()


def test_ghost_statistics_are_counted_once_where_blocks_run_again() -> None:
    models = []
    for again in (False, True):
        torch.manual_seed(0)
        norm = partial(GhostBatchNorm2d, images=2)
        model = create_model("resnext14_2x2d", 3, res2_out_channels=16, norm=norm)
        model.recompute = again
        model(torch.randn(6, 3, 64, 64)).sum().backward()
        models.append(model)
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
