"""Detectors of images that have other channels than three: their statistics, and a stem from weights of RGB."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..channels import read_channels
from ..errors import UserError
from ..weights import Checkpoint
from ..weights.naming import trunk_name

logger = logging.getLogger(__name__)

MEASURED = 200
"""Training images on which mean and deviation are measured."""
STEMS = ("mean", "repeat")
_STEM = ("stem.conv1.weight", "stem.conv1.0.weight")


def rgb_only(channels: int, what: str) -> None:
    """Raises UserError for a detector of other channels; ``what`` is for RGB alone."""
    if channels != 3:
        raise UserError(f"INPUT.CHANNELS {channels}: {what} is for RGB; train_net --eval-only evaluates this detector")


def with_statistics(cfg: CfgNode, found: Mapping[str, Any], dicts: Sequence[Mapping[str, Any]] = ()) -> CfgNode:
    """The config with MODEL.PIXEL_MEAN and PIXEL_STD for INPUT.CHANNELS; itself where they have this length.

    Args:
        found: metadata of the weights that are evaluated or resumed; theirs are taken.
        dicts: of the training set, on which they are measured else.

    Raises:
        UserError: neither.
    """
    channels = cfg.INPUT.CHANNELS
    if channels == 3 or len(cfg.MODEL.PIXEL_MEAN) == channels:
        return cfg
    if len(found.get("pixel_mean") or ()) == channels:
        mean, std, why = found["pixel_mean"], found["pixel_std"], "those of the weights"
    elif dicts:
        chosen = dicts[:: max(1, len(dicts) // MEASURED)][:MEASURED]
        mean, std = measured([d["file_name"] for d in chosen], channels, cfg.DATASETS.MAX_MEGAPIXELS)
        why = f"measured on {len(chosen)} training images"
    else:
        raise UserError(
            f"MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}: INPUT.CHANNELS is {channels}; give so many numbers, "
            "as the config.yaml of the training has them"
        )
    logger.info("INPUT.CHANNELS %d: MODEL.PIXEL_MEAN %s, MODEL.PIXEL_STD %s, %s", channels, mean, std, why)
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(mean), list(std)
    if frozen:
        cfg.freeze()
    return cfg


def measured(files: Sequence[str], channels: int, max_megapixels: float) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over the images, each counted alike; a constant channel has deviation 1."""
    moments = []
    for file in files:
        pixels = read_channels(file, channels, max_megapixels=max_megapixels).reshape(-1, channels).astype(np.float64)
        moments.append([pixels.mean(axis=0), (pixels**2).mean(axis=0)])
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return [round(float(v), 4) for v in mean], [round(float(v), 4) if v > 1e-6 else 1.0 for v in std]


def adapted_stem(checkpoint: Checkpoint, channels: int, how: str) -> Checkpoint:
    """Weights of RGB for a network of ``channels``, with what belongs to RGB taken out of their metadata.

    "mean": each channel gets the mean of the three filters; "repeat": R, G, B, R, ... Both are scaled by 3 / channels,
    so that a channel-wise equal image has the response that it had.
    """
    tensors = dict(checkpoint.tensors)
    for name, weight in checkpoint.tensors.items():
        if trunk_name(name) in _STEM and weight.ndim == 4 and weight.shape[1] == 3 != channels:
            tensors[name] = _stem(weight, channels, how)
            logger.warning(
                f"{name}: {how} of the RGB filters, times 3/{channels}, for INPUT.CHANNELS {channels} (INPUT.STEM)"
            )
            metadata = {k: v for k, v in checkpoint.metadata.items() if k not in ("pixel_mean", "pixel_std")}
            return replace(checkpoint, tensors=tensors, metadata={**metadata, "channel_order": None})
    return checkpoint


def _stem(weight: Tensor, channels: int, how: str) -> Tensor:
    if how == "mean":
        filters = weight.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    else:
        filters = weight[:, torch.arange(channels) % 3]
    return filters * (3 / channels)
