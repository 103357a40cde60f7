"""What a detector found in one image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..annotations.coco import Detections
from ..annotations.masks import decoded
from ..channels import viewable
from ..reporting.boxes import class_color, draw_boxes, drawable
from .inputs import read_rgb


@dataclass(eq=False)
class Result:
    """Detections in one image, best first.

    Attributes:
        boxes: (N, 4) float32, ``x1, y1, x2, y2`` in pixels of the image as it was given.
        scores: (N,) float64.
        class_ids: (N,) int64, from 0, positions in the model's classes.
        names: N class names.
        category_ids: (N,) int64, the classes' ids in the data set the model was trained on.
        features: (N, C) float32, each box's feature vector, or None where they were not asked for.
        image_size: height and width.
        source: the image: its file, or its pixels (H, W, 3), RGB, or those of other channels.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    names: list[str]
    category_ids: np.ndarray
    image_size: tuple[int, int]
    source: str | np.ndarray = field(repr=False)
    features: np.ndarray | None = field(default=None, repr=False)
    detections: Detections = field(default_factory=Detections.empty, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """COCO result records: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``, ..."""
        records = list(self.detections.records())
        for record, category in zip(records, self.category_ids.tolist(), strict=True):
            record.update(image_id=image_id, category_id=category)
        return records

    def for_supervision(self) -> dict[str, Any]:
        """The arguments of ``supervision.Detections(**result.for_supervision())``."""
        arguments: dict[str, Any] = {
            "xyxy": self.boxes,
            "confidence": self.scores.astype(np.float32),
            "class_id": self.class_ids,
            "data": {"class_name": np.array(self.names, dtype=str)},
        }
        if self.detections.masks:
            arguments["mask"] = np.array([decoded(counts, self.image_size) for counts in self.detections.masks])
        return arguments

    def draw(self, image: np.ndarray | Image.Image | None = None) -> Image.Image:
        """The image, or another of its size, with boxes, names and scores on it."""
        if image is None:
            image = read_rgb(self.source) if isinstance(self.source, str) else viewable(self.source)
        rows = zip(self.names, self.category_ids.tolist(), self.scores.tolist(), strict=True)
        texts = [f"{drawable(name, str(category))} {100 * score:.0f}%" for name, category, score in rows]
        return draw_boxes(image, self.detections.boxes, texts, [class_color(c) for c in self.class_ids.tolist()])


def result_of(
    detections: Detections,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    image_size: tuple[int, int],
    source: str | os.PathLike | np.ndarray,
    features: np.ndarray | None = None,
) -> Result:
    """``detections`` whose category ids are the model's classes, with their names."""
    classes = detections.category_ids
    boxes = detections.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    return Result(
        boxes=boxes,
        scores=detections.scores,
        class_ids=classes,
        names=[class_names[c] for c in classes.tolist()],
        category_ids=np.array(category_ids, dtype=np.int64)[classes],
        image_size=image_size,
        source=source if isinstance(source, np.ndarray) else os.fspath(source),
        features=features,
        detections=detections,
    )
