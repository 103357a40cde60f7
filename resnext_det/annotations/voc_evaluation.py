"""Pascal VOC's average precision, equal to detectron2's ``PascalVOCDetectionEvaluator`` in every digit.

Boxes are corners counted from 1, both inclusive. Objects marked difficult are neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = tuple(threshold / 100.0 for threshold in range(50, 100, 5))
YEARS = (2007, 2012)


@dataclass(frozen=True)
class VOCEvaluation:
    """Average precision by class and overlap.

    Attributes:
        precision: (classes, 10), 0 to 100, at overlaps .5, .55 ... .95. NaN by the area metric for a class with
            detections and without objects that count, as in detectron2.
        class_names: of the rows.
    """

    precision: np.ndarray
    class_names: list[str]

    def results(self) -> dict[str, float]:
        """``AP`` (mean over overlaps), ``AP50``, ``AP75``, then ``AP-<class>`` and ``AP50-<class>``."""
        means = [np.mean(self.precision[:, i].tolist()) for i in range(len(THRESHOLDS))]
        values = {"AP": np.mean(means), "AP50": means[0], "AP75": means[5]}
        for k, name in enumerate(self.class_names):
            values[f"AP-{name}"] = np.mean(self.precision[k])
        for k, name in enumerate(self.class_names):
            values[f"AP50-{name}"] = self.precision[k, 0]
        return {name: float(value) for name, value in values.items()}


def rounded(corners: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes with one decimal and scores with three, as detectron2's evaluator writes them to its text files.

    Args:
        corners: (N, 4).
        scores: (N,).
    """
    boxes = np.array([float(f"{value:.1f}") for value in corners.ravel().tolist()]).reshape(-1, 4)
    return boxes, np.array([float(f"{score:.3f}") for score in scores.tolist()])


def evaluate_voc(
    objects: Sequence[tuple[int, int, Sequence[float], bool]],
    image_ids: np.ndarray,
    classes: np.ndarray,
    corners: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    *,
    eleven_points: bool,
) -> VOCEvaluation:
    """Match detections with objects; each detection looks at the object it overlaps most, in order of score.

    Args:
        objects: (image id, class index, ``xmin, ymin, xmax, ymax`` from 1, difficult), in the order of the files.
        image_ids, classes, corners, scores: of N detections in the order they were made; equal scores are sorted by
            :func:`numpy.argsort` as in detectron2.
        eleven_points: the metric of VOC2007; else the area below the curve.
    """
    truth: dict[tuple[int, int], list[tuple[Sequence[float], bool]]] = {}
    for image, kind, box, difficult in objects:
        truth.setdefault((kind, image), []).append((box, difficult))
    positives = [0] * len(class_names)
    for _, kind, _, difficult in objects:
        positives[kind] += not difficult
    precision = np.zeros((len(class_names), len(THRESHOLDS)))
    for kind in range(len(class_names)):
        chosen = np.flatnonzero(classes == kind)
        order = chosen[np.argsort(-scores[chosen])]
        best, match, of_difficult = _overlaps(kind, truth, image_ids[order], corners[order])
        for column, threshold in enumerate(THRESHOLDS):
            over = best > threshold
            counts = over & ~of_difficult
            first = np.zeros(len(order), dtype=bool)
            hits = np.flatnonzero(counts)
            first[hits[np.unique(match[hits], return_index=True)[1]]] = True
            wrong = ~over | (counts & ~first)
            ap = _average_precision(first.astype(float), wrong.astype(float), positives[kind], eleven_points)
            precision[kind, column] = ap * 100
    return VOCEvaluation(precision, list(class_names))


def _overlaps(
    kind: int, truth: dict, image_ids: np.ndarray, corners: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(largest overlap, number of that object, whether it is difficult) of each detection."""
    best = np.full(len(corners), -np.inf)
    match = np.full(len(corners), -1)
    difficult = np.zeros(len(corners), dtype=bool)
    start = 0
    for image in np.unique(image_ids).tolist():
        found = truth.get((kind, image))
        if found is None:
            continue
        here = np.flatnonzero(image_ids == image)
        boxes = np.array([box for box, _ in found], dtype=float)
        bb = corners[here].astype(float)[:, None]
        width = np.maximum(np.minimum(boxes[:, 2], bb[..., 2]) - np.maximum(boxes[:, 0], bb[..., 0]) + 1.0, 0.0)
        height = np.maximum(np.minimum(boxes[:, 3], bb[..., 3]) - np.maximum(boxes[:, 1], bb[..., 1]) + 1.0, 0.0)
        common = width * height
        union = (
            (bb[..., 2] - bb[..., 0] + 1.0) * (bb[..., 3] - bb[..., 1] + 1.0)
            + (boxes[:, 2] - boxes[:, 0] + 1.0) * (boxes[:, 3] - boxes[:, 1] + 1.0)
            - common
        )
        overlap = common / union
        nearest = overlap.argmax(axis=1)
        best[here] = overlap[np.arange(len(here)), nearest]
        match[here] = start + nearest
        difficult[here] = np.array([hard for _, hard in found], dtype=bool)[nearest]
        start += len(found)
    return best, match, difficult


def _average_precision(right: np.ndarray, wrong: np.ndarray, positives: int, eleven_points: bool) -> float:
    """Of one class, 0 to 1, in the order and kind of additions that detectron2 makes."""
    right, wrong = np.cumsum(right), np.cumsum(wrong)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = right / float(positives)
    precision = right / np.maximum(right + wrong, np.finfo(np.float64).eps)
    if eleven_points:
        total = 0.0
        for least in np.arange(0.0, 1.1, 0.1):
            reached = precision[recall >= least]
            total = total + (np.max(reached) if len(reached) else 0) / 11.0
        return total
    recall = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([0.0], precision, [0.0]))[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))
