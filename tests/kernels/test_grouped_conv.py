"""The grouped convolution: in Triton's interpreter, which runs on CPUs, against float64; compiled for a GPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import ROOT

from resnext_det import UserError, create_model
from resnext_det.kernels import choice, layer
from resnext_det.kernels import grouped_conv as kernels
from resnext_det.kernels.layer import grouped_conv3x3, use_grouped_conv

needs_triton = pytest.mark.skipif(kernels.triton is None, reason="no Triton")


@needs_triton
def test_in_the_interpreter():
    # The interpreter is chosen when Triton is imported, so the checks have a process of their own.
    script = Path(__file__).with_name("interpreted.py")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.parametrize("name", ["_convolve_kernel", "_weight_kernel"])
def test_compiles_for_a_gpu_that_is_not_here(name):
    if tuple(map(int, kernels.triton.__version__.split(".")[:2])) < (3, 2):
        pytest.skip("the names by which a kernel is compiled without its launch are those of Triton 3.2 and later")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(kernels, name)
    maps = {"x", "merged", "y", "gradient"}
    types = {
        a: "*bf16" if a in maps else "*fp32" if a in ("scale", "shift", "sums") else "i32" for a in kernel.arg_names
    }
    config = kernels.configs(256, 4)[0] if "merged" in types else kernels.weight_configs(256, 4)[0]
    sizes = {
        "STRIDE": 2,
        "TILE": config.tile,
        "PIXELS": config.pixels,
        "TRANSPOSED": False,
        "PRECISE": False,
        "BLOCKS": 8,
    }
    constants = {a: sizes.get(a, True) for a in kernel.arg_names if a.isupper()}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, types, {(kernel.arg_names.index(a),): value for a, value in constants.items()})
    import triton

    options = {"num_warps": config.warps, "num_stages": config.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "mma" in compiled.asm["ptx"], "no tensor cores"


@pytest.mark.parametrize("width, groups, tile", [(4, 8, 16), (4, 8, 32), (16, 2, None), (32, 3, None)])
def test_merged_weight_is_the_dense_convolutions(width, groups, tile):
    weight = torch.randn(width * groups, width, 3, 3)
    merged = kernels.merged_weight(weight, groups, tile)
    tile = merged.shape[-1]
    x = torch.randn(1, width * groups, 3, 3)
    expected = torch.nn.functional.conv2d(x, weight, groups=groups).flatten()
    taps = x.view(-1, tile, 9).permute(0, 2, 1)
    torch.testing.assert_close(torch.einsum("tki,tkio->to", taps, merged).flatten(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width, groups", [(4, 3), (12, 4), (64, 1), (128, 1)])
def test_groups_that_fill_no_tile_are_refused(width, groups):
    if width == 64:
        with pytest.raises(ValueError, match="keeps their number"):
            kernels.merged_weight(torch.randn(32, 64, 3, 3), groups)
    else:
        with pytest.raises(ValueError, match="do not fill tiles"):
            kernels.merged_weight(torch.randn(width * groups, width, 3, 3), groups)


def test_every_cut_fits_its_layer():
    for width in (1, 2, 4, 8, 16, 32, 64):
        for channels in (64, 96, 32 * width):
            for found in (kernels.configs(channels, width), kernels.weight_configs(channels, width)):
                assert found or not kernels.supported(channels, width)
                assert all(c.tile >= width and channels % c.tile == 0 and c.pixels % 16 == 0 for c in found)


def test_without_triton_pytorch_computes_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "triton", None)
    model = create_model("resnext14_8x4d", num_classes=3, stem_out_channels=8, res2_out_channels=16)
    with caplog.at_level(logging.WARNING, "resnext_det"):
        assert use_grouped_conv(model, "auto") == 0
    assert "Triton is not installed, so all 4 stay PyTorch's" in caplog.text
    assert all(getattr(m, "convolve", None) is None for m in model.modules())
    x, weight = torch.randn(1, 32, 5, 6, requires_grad=True), torch.randn(32, 4, 3, 3, requires_grad=True)
    shift = torch.randn(32)
    y = grouped_conv3x3(x, weight, shift=shift, stride=2, groups=8, relu=True, mode="triton")
    expected = torch.nn.functional.conv2d(x, weight, shift, 2, 1, 1, 8).relu()
    torch.testing.assert_close(y, expected)
    for a, b in zip(*(torch.autograd.grad(r.square().sum(), (x, weight)) for r in (y, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@needs_triton
def test_what_the_kernel_cannot_stays_pytorchs(caplog, monkeypatch):
    monkeypatch.setattr(kernels, "lacking", lambda: "")
    model = create_model("resnext14_3x12d", num_classes=2, stem_out_channels=8, res2_out_channels=16)
    with caplog.at_level(logging.WARNING, "resnext_det"):
        assert use_grouped_conv(model, "triton") == 0
    assert "4 of 4 stay PyTorch's, such as 3 groups of 12 channels" in caplog.text
    with pytest.raises(UserError, match="GROUPED_CONV 'cudnn': choose from torch, triton, auto"):
        use_grouped_conv(model, "cudnn")


class TestChoice:
    @pytest.fixture(autouse=True)
    def anew(self, monkeypatch):
        choice.forget()
        self.times = {"slow": 3.0, "fast": 1.0, "triton a": 2.0, "triton b": 2.5}
        monkeypatch.setattr(choice, "once", lambda way, device: self.times[way()])
        yield
        choice.forget()

    def ways(self, *names):
        return {name: lambda n=name: n for name in names}

    def test_the_fastest_is_measured_once_and_logged_in_one_line(self, caplog):
        cpu = torch.device("cpu")
        with caplog.at_level(logging.INFO, "resnext_det"):
            assert choice.fastest("conv", 1, self.ways("slow", "fast", "triton a", "triton b"), cpu)() == "fast"
            self.times["fast"] = 9.0
            assert choice.fastest("conv", 1, self.ways("slow", "fast"), cpu)() == "fast", "remembered"
            assert choice.fastest("conv", 2, self.ways("slow", "fast"), cpu)() == "slow", "another key"
        first, second = (record.getMessage() for record in caplog.records)
        assert first == "conv: fast; fast 1000.000 ms, triton a 2000.000 ms, slow 3000.000 ms"
        assert second.startswith("conv: slow")
        assert choice._chosen == {1: "fast", 2: "slow"}

    def test_a_way_that_fails_is_left_out_loudly(self, caplog):
        def broken():
            raise RuntimeError("out of shared memory")

        with caplog.at_level(logging.WARNING, "resnext_det"):
            ways = {"triton a": broken, **self.ways("slow")}
            assert choice.fastest("conv", 3, ways, torch.device("cpu"))() == "slow"
        assert "triton a: left out, it fails: out of shared memory" in caplog.text
        with pytest.raises(RuntimeError, match="every way"):
            choice.fastest("conv", 4, {"a": broken, "b": broken}, torch.device("cpu"))

    def test_too_little_memory_is_reported_as_torch_does(self):
        def full():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(torch.cuda.OutOfMemoryError):
            choice.fastest("conv", 4, {"a": full, "b": full}, torch.device("cpu"))

    def test_a_single_way_is_not_measured(self):
        assert choice.fastest("conv", 5, {"only": lambda: "only"}, torch.device("cpu"))() == "only"
        assert choice._chosen == {}


def test_modes_offer_the_ways_they_name(monkeypatch):
    """What is measured on a GPU, with PyTorch standing in for the kernel."""
    offered = {}

    class OnGpu:
        """A tensor's facts, as if it lay on a GPU."""

        is_cuda, dtype, shape = True, torch.bfloat16, (2, 32, 8, 8)
        device = torch.device("cuda")

        def numel(self):
            return 1

    def fastest(title, key, ways, device):
        offered[key[2]] = list(ways)
        return lambda: title

    monkeypatch.setattr(layer, "fastest", fastest)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(kernels, "available", lambda x: True)
    weight, configs = torch.zeros(32, 4, 3, 3), kernels.configs(32, 4)
    for mode in layer.MODES:
        title = layer._run("forward", OnGpu(), weight, 1, 8, mode, print, print, configs)
    assert title == "grouped convolution, forward, 2x32x8x8 in 8 groups, stride 1, torch.bfloat16 on GPU"
    cuts = [f"triton {config}" for config in configs]
    assert offered["triton"] == cuts
    assert offered["auto"] == [*cuts, "torch channels-last", "torch NCHW"]
    assert offered["torch"] == ["torch channels-last"]
    torch.use_deterministic_algorithms(True)
    try:  # nothing that depends on a measurement
        for mode in ("auto", "triton"):
            layer._run("forward", OnGpu(), weight, 1, 8, mode, print, print, configs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert offered["auto"] == ["torch channels-last"] and offered["triton"] == ["triton"]
