"""What the tests of weights share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resnext_det.weights import Checkpoint


def randomise_norms(model: nn.Module) -> nn.Module:
    """Give every norm its own statistics, so that none could be left out unseen. Returns the model, in eval mode."""
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            with torch.no_grad():
                module.weight.uniform_(0.6, 1.0)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
    return model.eval()


def in_memory(tensors: dict[str, Tensor], source: str = "native-classifier") -> Checkpoint:
    """A checkpoint that was never written."""
    return Checkpoint(dict(tensors), source, {}, "weights.pth", "")


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def caffe2_names(tensors: dict[str, Tensor], statistics: bool) -> dict:
    """A native classifier as the zoo's pickles hold one: Caffe2's names, numpy arrays.

    Without ``statistics`` each norm is scale and shift only, as in the MSRA files.
    """
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    leaves = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    blobs = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[-1] == "num_batches_tracked" or not statistics and parts[-1].startswith("running"):
            continue
        is_norm = "norm" in parts
        if parts[0] == "fc":
            new = f"pred_{parts[1][0]}"
        elif parts[0] == "stem":
            new = f"res_conv1_bn_{leaves[parts[-1]]}" if is_norm else "conv1_w"
        else:
            new = f"{parts[0]}_{parts[1]}_{branches[parts[2]]}_" + (f"bn_{leaves[parts[-1]]}" if is_norm else "w")
        blobs[new] = tensor.numpy()
    return blobs
