"""The grouped 3x3 convolutions of ResNeXt 32x4d, layer by layer (paper Sec. 5.1: the cost of grouped convolution)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .measure import Result, Row, Rows, Setting, relative_error, timed
from .networks import ceilings

LAYERS = ((4, 56, 1), (8, 56, 2), (8, 28, 1), (16, 28, 2), (16, 14, 1), (32, 14, 2), (32, 7, 1))
"""(channels of a group, size of the map, stride) of each kind in ResNeXt-50 and 101 32x4d at 224x224."""

IN_X101 = (3, 1, 3, 1, 22, 1, 2)
"""How often each stands in ResNeXt-101."""

PASSES = ("forward", "input gradient", "weight gradient")


def grouped_conv(setting: Setting) -> Result:
    """Every layer and pass: PyTorch's on NCHW and on channels-last memory, and our kernel in each of its cuts.

    Batch 64 (or ``setting.batch``) in bf16 on a GPU; one image in fp32 on a CPU. ``gigabytes_per_second`` counts
    input, output and weights once and ``teraflops`` the multiply-adds of the groups alone, twice: what must be done.
    ``floor`` is the share of the time that these take at the speed of a large copy and of a large matrix product,
    measured in the same run: 1 is as fast as can be.
    """
    on_gpu = setting.device == "cuda"
    batch = setting.batch or (64 if on_gpu else 1)
    rows, limits = Rows(setting), {}
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        rows.add("ceilings", lambda: ceilings(setting))
        limits = rows.rows.get("ceilings", {})
        for width, size, stride in ((4, 8, 1), (8, 9, 2)) if setting.quick else LAYERS:
            for what in PASSES:
                label = f"{32 * width} channels, {size}x{size}, stride {stride}, {what}"
                _layer(setting, batch, width, size, stride, what, limits, rows, label)
    finally:
        torch.backends.cudnn.benchmark = before
    return {**_compare(rows.rows), **rows.section()}


def _layer(setting, batch, width, size, stride, what, limits, rows: Rows, label: str) -> None:
    """The rows of one pass of one layer."""
    torch.manual_seed(0)
    on_gpu = setting.device == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    groups, channels = 32, 32 * width
    x = torch.randn(batch, channels, size, size, device=setting.device, dtype=dtype)
    weight = torch.randn(channels, width, 3, 3, device=setting.device, dtype=dtype) / width**0.5
    out = -(-size // stride)
    slopes = torch.randn(batch, channels, out, out, device=setting.device, dtype=dtype)
    moved = (x.numel() + slopes.numel() + weight.numel()) * x.element_size()
    operations = 2 * slopes.numel() * 9 * width
    exact = _exact(x[:2], weight, slopes[:2], stride, groups, what)
    for side, function in _sides(x, weight, slopes, stride, groups, what, setting).items():

        def measure(function=function, side=side) -> Row:
            seconds = timed({"": function}, setting, 20)[""]
            floor = max(moved / limits["copy, bytes per second"],
                        operations / limits["matrix product, operations per second"])  # fmt: skip
            few = _sides(x[:2], weight, slopes[:2], stride, groups, what, setting)[side]
            return {
                "seconds": seconds,
                "gigabytes_per_second": moved / seconds / 1e9,
                "teraflops": operations / seconds / 1e12,
                "floor": floor / seconds,
                "relative": relative_error(few(), exact),
            }

        if limits:
            rows.add(f"{label}, {side}", measure)


def _sides(
    x: Tensor, weight: Tensor, slopes: Tensor, stride: int, groups: int, what: str, setting: Setting
) -> dict[str, Callable[[], Tensor]]:
    """{side: what computes the pass}."""
    from ..kernels import grouped_conv as kernels

    sides: dict[str, Callable[[], Tensor]] = {}
    for name, memory in (("NCHW", torch.contiguous_format), ("channels-last", torch.channels_last)):
        a, g = (t.contiguous(memory_format=memory) for t in (x, slopes))
        sides[name] = partial(_pytorch, a, weight, g, stride, groups, what)
    if not kernels.available(x) or not (setting.device == "cuda" or setting.quick):
        return sides
    a, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, slopes))
    find = kernels.weight_configs if what == "weight gradient" else kernels.configs
    for config in find(x.shape[1], weight.shape[1], x.dtype):
        sides[f"ours {config}"] = {
            "forward": partial(kernels.convolve, a, weight, stride, groups, config=config),
            "input gradient": partial(kernels.input_gradient, g, weight, stride, groups, x.shape[2:], config),
            "weight gradient": partial(kernels.weight_gradient, a, g, stride, groups, config),
        }[what]
    return sides


def _pytorch(x: Tensor, weight: Tensor, slopes: Tensor, stride: int, groups: int, what: str) -> Tensor:
    if what == "forward":
        return F.conv2d(x, weight, None, stride, 1, 1, groups)
    wanted = [what == "input gradient", what == "weight gradient", False]
    geometry = [stride] * 2, [1, 1], [1, 1], False, [0, 0], groups
    gradients = torch.ops.aten.convolution_backward(slopes, x, weight, None, *geometry, wanted)
    return gradients[wanted.index(True)]


def _exact(x: Tensor, weight: Tensor, slopes: Tensor, stride: int, groups: int, what: str) -> Tensor:
    return _pytorch(x.double(), weight.double(), slopes.double(), stride, groups, what)


def _compare(rows: dict[str, Row]) -> Result:
    """Ratios over the faster of PyTorch's two, for the best cut; errors; and the sums over ResNeXt-101's layers."""
    by_pass: dict[str, dict[str, Row]] = {}
    for label, row in rows.items():
        if "seconds" in row:
            layer, _, side = label.rpartition(" gradient, " if " gradient, " in label else " forward, ")
            what = label[len(layer) :].split(",")[0].strip()
            by_pass.setdefault(f"{layer} {what}", {})[side] = row
    ratios, agreement = {}, {}
    sums: dict[str, float] = {}
    for label, sides in by_pass.items():
        seconds = {side: float(row["seconds"]) for side, row in sides.items()}
        peer = min((seconds[side] for side in ("NCHW", "channels-last") if side in seconds), default=None)
        ours = [value for side, value in seconds.items() if side.startswith("ours")]
        if peer and ours:
            ratios[label] = peer / min(ours)
        elif len(seconds) == 2:
            ratios[f"{label}, channels-last"] = seconds["NCHW"] / seconds["channels-last"]
        agreement |= {f"{label}, {side}, relative": float(row["relative"]) for side, row in sides.items()}
        for (width, size, stride), times in zip(LAYERS, IN_X101, strict=True):
            if label.startswith(f"{32 * width} channels, {size}x{size}, stride {stride}, "):
                kinds = {"NCHW": seconds.get("NCHW"), "channels-last": seconds.get("channels-last")}
                for kind, value in {**kinds, "ours, best cut": min(ours, default=None)}.items():
                    sums[kind] = sums.get(kind, 0.0) + times * (value or float("nan"))
    whole = {f"ResNeXt-101's grouped convolutions, a step, seconds: {kind}": value for kind, value in sums.items()}
    return {"ratios": ratios, "agreement": agreement, "sums": whole}
