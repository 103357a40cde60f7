"""Top-1 and top-5 error of a classifier (paper Tables 3 to 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from .augmentation import Normalize


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    normalize: Normalize,
    loaders: Sequence[Iterable],
    *,
    flip: bool = False,
    among: Sequence[int] | None = None,
    also_among: Sequence[int] | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> dict[str, float]:
    """Errors in percent over all processes.

    Args:
        model: (N, 3, H, W) -> logits (N, classes). Set to evaluation, and back.
        loaders: batches of (uint8 (N, 3, H, W), labels (N,)). Several loaders hold the same images at several sizes:
            their softmax scores are averaged (multi-scale dense testing; the network is fully convolutional up to its
            pooling, and pooling then classifying equals averaging the dense map of class scores).
        flip: average with the mirrored image's scores.
        among: labels that compete; None for all (Table 6: the 1K-way test of a 5K-way classifier).
        also_among: labels that compete in a second ranking of the same logits.

    Returns:
        {"top1_error", "top5_error"}; top-5 counts the best min(5, classes). With ``also_among`` the second ranking's
        too, as "top1_error_among" and "top5_error_among".
    """
    rankings = {"": among} if also_among is None else {"": among, "_among": also_among}
    device = normalize.mean.device
    was_training = model.training
    model.eval()
    counts = torch.zeros(len(rankings), 3, dtype=torch.float64, device=device)  # images, top-1 hits, top-5 hits
    for batches in zip(*loaders, strict=True):
        scores = [0] * len(rankings)
        for images, labels in batches:
            x, labels = normalize(images.to(device)), labels.to(device)
            for view in (x, x.flip(-1)) if flip else (x,):
                with torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None):
                    logits = model(view)
                for i, competing in enumerate(rankings.values()):
                    scores[i] = scores[i] + F.softmax(restrict(logits.float(), competing), dim=1)
        counts += torch.stack([hits(score, labels) for score in scores])
    model.train(was_training)
    if comm.get_world_size() > 1:
        dist.all_reduce(counts)
    errors = {}
    for name, (total, top1, top5) in zip(rankings, counts.tolist(), strict=True):
        errors |= {f"top1_error{name}": 100 * (1 - top1 / total), f"top5_error{name}": 100 * (1 - top5 / total)}
    return errors


def restrict(logits: Tensor, among: Sequence[int] | None) -> Tensor:
    """Logits (N, classes) with every class outside ``among`` at minus infinity."""
    if among is None:
        return logits
    kept = torch.full_like(logits, -torch.inf)
    kept[:, list(among)] = logits[:, list(among)]
    return kept


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """(images, top-1 hits, top-5 hits) as float64 (3,) of scores (N, classes) and labels (N,)."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([torch.full_like(best[:, 0].sum(), len(labels)), best[:, 0].sum(), best.sum()]).double()
