"""A sample as the model gets it, drawn for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...channels import viewable
from ...files import shown
from ...reporting.boxes import class_color, draw_boxes

WIDTH = 320
"""Of a drawn sample, pixels."""


def drawn_sample(sample: Mapping[str, Any], class_names: Sequence[str], channel_order: str) -> Image.Image:
    """The image with its boxes, and its masks where they are bitmaps.

    Args:
        sample: of the training loader: ``image`` (3, H, W) and ``instances``.
        channel_order: of ``image``, RGB or BGR.
    """
    seen = sample["image"].permute(1, 2, 0).numpy()
    pixels = viewable(seen)
    if channel_order == "BGR" and pixels is seen:
        pixels = pixels[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels)
    instances = sample["instances"]
    classes = instances.gt_classes.tolist()
    colors = [class_color(c) for c in classes]
    if instances.has("gt_masks") and hasattr(instances.gt_masks, "tensor"):
        for mask, color in zip(instances.gt_masks.tensor.numpy(), colors, strict=True):
            pixels[mask] = (pixels[mask] + np.array(color)) // 2
    corners = instances.gt_boxes.tensor.numpy()
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    names = [shown(class_names[c], 40) for c in classes]
    return draw_boxes(pixels, boxes, names, colors, scale=WIDTH / pixels.shape[1])
