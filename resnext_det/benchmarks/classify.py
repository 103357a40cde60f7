"""Classifying pictures: torchvision's ResNeXt-50 32x4d, OpenVINO where it is installed, and ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..resnext import create_model
from .measure import Result, Setting, not_run, relative_error, result, timed


@torch.no_grad()
def classify(setting: Setting) -> Result:
    """ResNeXt-50 32x4d, batch 16 at 224x224, against torchvision's model with the same weights."""
    import torchvision

    from ..detection.optimize import optimize_for_inference

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
    models = {"torchvision fp32": peer, "optimized fp32": optimize_for_inference(ours, "fp32")}
    if setting.bf16:
        models["optimized bf16"] = optimize_for_inference(ours, "bf16")
    openvino = _openvino(peer, x) if device == "cpu" else None
    if openvino is not None:
        models["OpenVINO fp32"] = openvino
    seconds = timed({name: lambda m=model: m(x) for name, model in models.items()}, setting, 7)
    logits = {name: model(x) for name, model in models.items()}
    expected = logits["torchvision fp32"]
    agreement = {}
    for name in (name for name in models if name != "torchvision fp32"):
        agreement[f"{name} top-1"] = (logits[name].argmax(1) == expected.argmax(1)).float().mean().item()
        agreement[f"{name} logits, relative"] = relative_error(logits[name], expected)
    per_second = {name: batch / value for name, value in seconds.items()}
    skipped = not_run(setting, "optimized bf16")
    if openvino is None:
        skipped.setdefault("not run", {})["OpenVINO"] = "not run: not installed (pip install openvino), or not a CPU"
    return result(seconds, "torchvision fp32", agreement, images_per_second=per_second, **skipped)


def _openvino(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The model in OpenVINO, in fp32 on as many threads as torch has; None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.convert_model(model, example_input=x), "CPU", settings)
    return lambda batch: torch.from_numpy(compiled(batch.numpy())[0])
