"""The grouped 3x3 convolutions of ResNeXt-50 32x4d (paper Sec. 5.1: the cost of grouped convolution)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .measure import Result, Setting, relative_error, timed


def grouped_conv(setting: Setting) -> Result:
    """The 3x3 convolutions of ResNeXt-50 32x4d, each stage's: PyTorch's, and ours where a GPU can run it.

    Batch 64 at 224x224 in bf16 on a GPU; one picture in fp32 on a CPU. ``gigabytes_per_second`` counts input, output
    and weights once, the floor of the bytes to move.
    """
    from ..kernels.grouped_conv import available, grouped_conv3x3

    on_gpu = setting.device == "cuda"
    batch, dtype = (64, torch.bfloat16) if on_gpu else (1, torch.float32)
    seconds, ratios, agreement, rates = {}, {}, {}, {}
    for width, size, stride in ((4, 56, 1), (8, 28, 1), (16, 14, 1), (32, 14, 2), (32, 7, 1)):
        torch.manual_seed(0)
        channels, label = 32 * width, f"{32 * width} channels, {size}x{size}, stride {stride}"
        x = torch.randn(batch, channels, size, size, device=setting.device, dtype=dtype).requires_grad_()
        weight = (torch.randn(channels, width, 3, 3, device=setting.device, dtype=dtype) / width**0.5).requires_grad_()
        last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()

        def peer(x: Tensor, weight: Tensor = weight, stride: int = stride) -> Tensor:
            return nn.functional.conv2d(x, weight, None, stride, 1, 1, 32)

        def ours(x: Tensor, weight: Tensor = weight, stride: int = stride) -> Tensor:
            return grouped_conv3x3(x, weight, None, stride, 32)

        sides = {"NCHW": (peer, x), "channels-last": (peer, last)}
        if available(last) and (on_gpu or setting.quick):
            sides["ours"] = (ours, last)
        functions = {}
        for name, (function, value) in sides.items():
            functions[f"{name} forward"] = lambda f=function, v=value: f(v.detach())
            functions[f"{name} with backward"] = lambda f=function, v=value: f(v).sum().backward()
        found = timed(functions, setting, 20)
        seconds |= {f"{label}, {name}": value for name, value in found.items()}
        moved = (x.numel() + peer(x).numel() + weight.numel()) * x.element_size()
        rates |= {f"{label}, {name}": moved / found[f"{name} forward"] / 1e9 for name in sides}
        for name in sides:
            for what in ("forward", "with backward"):
                ratio = found[f"NCHW {what}"] / found[f"{name} {what}"]
                ratios |= {f"{label}, {name} {what}": ratio} if name != "NCHW" else {}
            exact = nn.functional.conv2d(x.double(), weight.double(), None, stride, 1, 1, 32)
            agreement[f"{label}, {name}, relative"] = relative_error(sides[name][0](sides[name][1]), exact)
    return {"ratios": ratios, "agreement": agreement, "seconds": seconds, "gigabytes_per_second": rates}
