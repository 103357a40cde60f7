"""Detections on several images, on one sheet."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..annotations.coco import Detections
from ..annotations.dataset import Dataset, positions
from ..files import shown
from ..images import read_image
from .boxes import class_color, draw_boxes

GAP = 6  # pixels between images


def detections_sheet(
    truth: Dataset,
    detections: Detections,
    image_root: str | os.PathLike,
    image_ids: Sequence[int],
    *,
    columns: int = 4,
    width: int = 320,
    score_threshold: float = 0.5,
) -> Image.Image:
    """Images side by side, each with its detections: class and score in percent.

    Args:
        truth: names of classes and files.
        detections: boxes ``x, y, width, height`` in pixels of the images as they are on the disk.
        image_ids: which images, in this order.
        columns: images in a row.
        width: of each in pixels.
        score_threshold: detections below it are left out.
    """
    place = {image_id: i for i, image_id in enumerate(truth.image_ids.tolist())}
    names = [shown(name, 40) for name in truth.class_names]
    tiles = []
    for image_id in image_ids:
        kept = detections.take((detections.image_ids == image_id) & (detections.scores >= score_threshold))
        classes = positions(kept.category_ids, truth.category_ids).tolist()
        texts = [f"{names[c]} {100 * s:.0f}" for c, s in zip(classes, kept.scores.tolist(), strict=True)]
        pixels = read_image(os.path.join(image_root, truth.file_names[place[image_id]]), "RGB")
        colors, scale = [class_color(c) for c in classes], width / pixels.shape[1]
        tiles.append(draw_boxes(pixels, kept.boxes, texts, colors, scale=scale))
    return tiled(tiles, columns)


def tiled(tiles: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Images on one white sheet, ``columns`` in a row."""
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    across = max((sum(tile.width + GAP for tile in row) for row in rows), default=GAP)
    sheet = Image.fromarray(np.full((sum(heights) + GAP * (len(rows) + 1), across + GAP, 3), 255, np.uint8))
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for tile in row:
            sheet.paste(tile, (left, top))
            left += tile.width + GAP
        top += height + GAP
    return sheet
