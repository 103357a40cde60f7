"""Whether two detectors found the same."""

from __future__ import annotations

import torch
from detectron2.structures import Instances


def assert_same_detections(found: Instances, expected: Instances) -> None:
    """Boxes within 1e-3 pixels, scores within 1e-5, equal classes, in any order: rounding may swap near ties."""
    assert len(found) == len(expected)
    boxes = torch.cdist(found.pred_boxes.tensor, expected.pred_boxes.tensor, p=torch.inf)
    scores = (found.scores[:, None] - expected.scores).abs()
    same = (boxes <= 1e-3) & (scores <= 1e-5) & (found.pred_classes[:, None] == expected.pred_classes)
    assert same.any(0).all() and same.any(1).all(), f"{int((~same.any(0)).sum())} detections have no counterpart"
