"""Classifying images: torchvision's ResNeXt-50 32x4d against ours."""

from __future__ import annotations

import torch

from ..resnext import create_model
from .measure import Result, Setting, not_run, optimized_copies, relative_error, result, timed


@torch.no_grad()
def classify(setting: Setting) -> Result:
    """ResNeXt-50 32x4d, batch 16 at 224x224, against torchvision's model with the same weights."""
    import torchvision

    device, quick = setting.device, setting.quick
    torch.manual_seed(0)
    peer = torchvision.models.resnext50_32x4d().to(device).eval()
    ours = create_model("resnext50_32x4d").to(device).eval()
    # Both list convolution after convolution in the order of the computation, so the tensors pair up.
    values = [value for name, value in peer.state_dict().items() if not name.endswith("num_batches_tracked")]
    names = [name for name in ours.state_dict() if not name.endswith("num_batches_tracked")]
    ours.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    batch, size = (2, 64) if quick else (16, 224)
    x = torch.randn(batch, 3, size, size, device=device)
    copies = optimized_copies(ours, setting, torch.randn_like(x))
    models = {"torchvision fp32": peer, **{f"optimized {name}": model for name, model in copies.items()}}
    seconds = timed({name: lambda m=model: m(x) for name, model in models.items()}, setting, 7)
    logits = {name: model(x) for name, model in models.items()}
    expected = logits["torchvision fp32"]
    agreement = {}
    for name in (name for name in models if name != "torchvision fp32"):
        agreement[f"{name} top-1"] = (logits[name].argmax(1) == expected.argmax(1)).float().mean().item()
        agreement[f"{name} logits, relative"] = relative_error(logits[name], expected)
    per_second = {name: batch / value for name, value in seconds.items()}
    return result(seconds, "torchvision fp32", agreement, images_per_second=per_second, **not_run(setting, copies))
