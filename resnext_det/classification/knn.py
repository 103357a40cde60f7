"""Weighted k-NN on the trunk's features: how good they are without any training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor

from ..resnext import Classifier, Trunk
from .augmentation import Normalize
from .evaluate import hits

CHUNK = 1024  # images that are compared with all others at once


def knn_scores(
    features: Tensor, labels: Tensor, queries: Tensor, neighbors: int, temperature: float, classes: int
) -> Tensor:
    """Votes (M, classes) of the nearest features: each neighbor's is exp(cosine / temperature).

    The weights are those of Wu et al. (CVPR 2018, Sec. 3.4), as DINO's eval_knn.py computes them.

    Args:
        features, labels: (N, C) and (N,) of the known images.
        queries: (M, C).
        neighbors: how many vote; all of them where there are fewer.
    """
    features, queries = F.normalize(features), F.normalize(queries)
    scores = []
    for part in queries.split(CHUNK):
        cosine, nearest = (part @ features.T).topk(min(neighbors, len(features)))
        votes = cosine.new_zeros(len(part), classes)
        scores.append(votes.scatter_add_(1, labels[nearest], (cosine / temperature).exp()))
    return torch.cat(scores)


@torch.inference_mode()
def knn_error(
    model: Classifier, normalize: Normalize, known: Iterable, test: Iterable, *, neighbors: int, temperature: float
) -> float:
    """Top-1 error in percent over all processes, by the features before ``fc``.

    Args:
        known, test: this process's share of the batches: uint8 (N, 3, H, W), labels (N,).
        neighbors, temperature: see :func:`knn_scores`.
    """
    was_training = model.training
    model.eval()
    shares = comm.all_gather(_features(model, normalize, known))
    features, labels = (torch.cat(parts) for parts in zip(*shares, strict=True))
    queries, truth = _features(model, normalize, test)
    scores = knn_scores(features, labels, queries, neighbors, temperature, model.fc.out_features)
    counts = torch.stack(comm.all_gather(hits(scores, truth))).sum(0)
    model.train(was_training)
    return float(100 * (1 - counts[1] / counts[0]))


def _features(model: Classifier, normalize: Normalize, batches: Iterable) -> tuple[Tensor, Tensor]:
    """((N, C) pooled maps of the last stage, (N,) labels), on the CPU."""
    features, labels = [torch.zeros(0, model.fc.in_features)], [torch.zeros(0, dtype=torch.int64)]
    for images, of_images in batches:
        (maps,) = Trunk.forward(model, normalize(images.to(normalize.mean.device))).values()
        features.append(maps.mean((2, 3)).float().cpu())
        labels.append(of_images)
    return torch.cat(features), torch.cat(labels)
