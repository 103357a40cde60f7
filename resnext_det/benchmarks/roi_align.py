"""RoIAlign against torchvision's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .measure import Result, Setting, relative_error, result, timed


def roi_align(setting: Setting) -> Result:
    """1000 boxes on a map of 1024x30x40 to 14x14 bins, forward; and forward with backward."""
    from torchvision.ops import roi_align as torchvision_roi_align

    from ..detection.roi_align import roi_align as own

    device, quick = setting.device, setting.quick
    torch.manual_seed(0)
    regions, channels = (20, 16) if quick else (1000, 1024)
    features = torch.randn(1, channels, 30, 40, device=device)
    corner = torch.rand(regions, 2) * torch.tensor([500.0, 380.0])
    boxes = torch.cat([torch.zeros(regions, 1), corner, corner + torch.rand(regions, 2) * 300 + 8], 1).to(device)
    last = features.contiguous(memory_format=torch.channels_last)
    half = last.bfloat16()

    def backward(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        x = x.detach().requires_grad_()
        function(x).sum().backward()

    def peer(x: Tensor) -> Tensor:
        return torchvision_roi_align(x, boxes, 14, 1 / 16, 0, True)

    def ours(x: Tensor) -> Tensor:
        return own(x, boxes, 14, 1 / 16)

    forward = timed(
        {"torchvision fp32": lambda: peer(features), "ours fp32": lambda: ours(last), "ours bf16": lambda: ours(half)},
        setting,
        7,
    )
    both = timed(
        {"torchvision fp32": lambda: backward(peer, features), "ours fp32": lambda: backward(ours, last)}, setting, 5
    )
    expected = peer(features)
    agreement = {
        "fp32, relative": relative_error(ours(last), expected),
        "bf16, relative": relative_error(ours(half), expected),
    }
    outcome = result(forward, "torchvision fp32", agreement)
    outcome["ratios"]["ours fp32, with backward"] = both["torchvision fp32"] / both["ours fp32"]
    outcome["seconds"] |= {f"{name}, with backward": value for name, value in both.items()}
    return outcome
