"""The Triton kernel in Triton's interpreter, which runs on CPUs, against PyTorch in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from resnext_det.kernels.grouped_conv import merged_weight  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

CHECK = """
import torch, torch.nn.functional as F
from resnext_det.kernels.grouped_conv import available, grouped_conv3x3
for width, groups, stride, size in ((4, 8, 1, (9, 7)), (8, 4, 2, (7, 10)), (16, 2, 1, (5, 6)), (32, 2, 2, (14, 14)),
                                    (32, 1, 1, (1, 1))):
    torch.manual_seed(width)
    x = torch.randn(3, width * groups, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    w, b = torch.randn(width * groups, width, 3, 3, requires_grad=True), torch.randn(width * groups)
    assert available(x)
    y = grouped_conv3x3(x, w, b, stride, groups, relu=True)
    X, W = (t.detach().double().requires_grad_() for t in (x, w))
    expected = F.conv2d(X, W, b.double(), stride, 1, 1, groups).relu()
    weight = torch.randn(expected.shape)
    gradients = torch.autograd.grad((y * weight).sum(), (x, w))
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (X, W))
    for result, exact in zip((y, *gradients), (expected, *expected_gradients)):
        assert result.shape == exact.shape and exact.abs().max() > 0.1
        assert (result.double() - exact).norm() < 1e-6 * exact.norm(), (width, stride)
"""


def test_kernel_and_gradients_equal_pytorchs_in_float64():
    # The interpreter is chosen when Triton is imported, so the check has a process of its own.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("width, groups", [(4, 8), (16, 2), (32, 3)])
def test_merged_weight_is_the_dense_convolutions(width, groups):
    weight = torch.randn(width * groups, width, 3, 3)
    merged = merged_weight(weight, groups)
    tile = merged.shape[-1]
    x = torch.randn(1, width * groups, 3, 3)
    expected = torch.nn.functional.conv2d(x, weight, groups=groups).flatten()
    taps = x.view(-1, tile, 9).permute(0, 2, 1)
    torch.testing.assert_close(torch.einsum("tki,tkio->to", taps, merged).flatten(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width, groups", [(4, 3), (12, 4), (64, 1)])
def test_groups_that_fill_no_tile_are_refused(width, groups):
    if width == 64:
        with pytest.raises(ValueError, match="keeps their number"):
            merged_weight(torch.randn(32, 64, 3, 3), groups)
    else:
        with pytest.raises(ValueError, match="do not fill tiles"):
            merged_weight(torch.randn(width * groups, width, 3, 3), groups)
