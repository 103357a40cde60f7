"""Large images, looked at tile by tile: small objects keep their pixels, and one on a seam is found once.

Libraries that do this bring OpenCV and shapely (sahi) or SciPy and a video library (supervision), which an export does
without; this takes and gives what a predictor does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from ..annotations.coco import Detections
from ..errors import UserError

SAME = 0.5
"""Overlap from which two boxes of a class in two tiles are one object."""


@dataclass
class Tiled:
    """A predictor that cuts images into tiles, and merges what ``detect`` finds in them by class-wise NMS.

    A box that ends where its tile does, and the image does not, is cut: it gives way to one that is whole, and is the
    same object where half of the smaller box lies in the larger. Others are where intersection over union says so.
    An object is seen whole by some tile if it is no larger than the overlap.

    Attributes:
        detect: RGB images (H, W, 3) uint8 -> boxes of each.
        size: side of a tile in pixels. An image no larger is given to ``detect`` as it is.
        overlap: of neighboring tiles, as a part of ``size``.
    """

    detect: Callable[[Sequence[np.ndarray]], list[Detections]]
    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.size < 32 or not 0 <= self.overlap <= 0.9:
            raise UserError(f"tiles of {self.size} pixels that overlap by {self.overlap:g}: give 32 or more, 0 to 0.9")

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections in each image, best first; boxes in its pixels."""
        if all(max(image.shape[:2]) <= self.size for image in images):
            return self.detect(images)
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> Detections:
        places = list(product(*(starts(length, self.size, self.overlap) for length in image.shape[:2])))
        if len(places) == 1:
            return self.detect([image])[0]
        found, cut, tiles = [], [], []
        for number, (top, left) in enumerate(places):
            tile = image[top : top + self.size, left : left + self.size]
            (inside,) = self.detect([np.ascontiguousarray(tile)])
            if inside.masks is not None or inside.keypoints is not None:
                raise UserError("tiles: masks and keypoints cannot be merged; leave out --tile and TEST.TILE")
            boxes = inside.boxes + np.array([left, top, 0, 0], dtype=inside.boxes.dtype)
            near, far = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
            begin, end = np.array([left, top]), np.array([left, top]) + tile.shape[1::-1]
            inner = ((near < begin + 1) & (begin > 0)) | ((far > end - 1) & (end < image.shape[1::-1]))
            found.append(replace(inside, boxes=boxes))
            cut.append(inner.any(axis=1))
            tiles.append(np.full(len(boxes), number))
        every = Detections.concatenate(found)
        kept = merged(every, np.concatenate(cut), np.concatenate(tiles))
        return every.take(kept[np.argsort(-every.scores[kept], kind="stable")])


def starts(length: int, size: int, overlap: float) -> list[int]:
    """Where tiles begin along a side; the last one ends where the side does."""
    step = max(1, round(size * (1 - overlap)))
    return [*range(0, max(length - size, 0), step), max(length - size, 0)]


def merged(found: Detections, cut: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """Positions of the detections that stay: whole before cut, then by score, each without its doubles.

    Args:
        cut: (N,) bool.
        tiles: (N,), from which each comes; of one tile all are different objects.
    """
    order = np.lexsort((-found.scores, cut))
    near, area = found.boxes[:, :2], found.boxes[:, 2:].prod(axis=1)
    far = near + found.boxes[:, 2:]
    open_, kept = np.ones(len(found), dtype=bool), []
    for i in order:
        if not open_[i]:
            continue
        kept.append(i)
        shared = np.clip(np.minimum(far, far[i]) - np.maximum(near, near[i]), 0, None).prod(axis=1)
        whole = np.where(cut | cut[i], np.minimum(area, area[i]), area + area[i] - shared)
        double = (shared > SAME * whole) & (tiles != tiles[i]) & (found.category_ids == found.category_ids[i])
        open_ &= ~double
    return np.array(kept, dtype=np.int64)
