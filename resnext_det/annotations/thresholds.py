"""What a score threshold does: detections matched once, then precision, recall and F1 at every threshold.

Detections are matched greedily by falling score, so the match of one depends on higher scores only: what is found at
the lowest threshold holds at every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .coco import Detections
from .dataset import Dataset, positions
from .evaluation import check_detections

IOU = 0.5
GRID = np.arange(101) / 100
"""The thresholds that results.json lists."""
BINS = 15  # of the reliability, as Guo et al. (ICML 2017) take them
RIGHT, WRONG, NOT_COUNTED = 1, 0, -1
_PAIRS = 1 << 19  # detections x objects that are compared at a time


@dataclass(frozen=True)
class Curve:
    """At M rising thresholds, the detections that score as much or more. Precision without detections is NaN.

    Attributes:
        thresholds: (M,) scores.
        right, wrong: (M,) detections; those that a crowd takes are neither.
        objects: how many there are to find.
    """

    thresholds: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    objects: int

    @property
    def precision(self) -> np.ndarray:
        """(M,) 0 to 1."""
        return _ratio(self.right, self.right + self.wrong)

    @property
    def recall(self) -> np.ndarray:
        """(M,) 0 to 1; NaN without objects."""
        return _ratio(self.right, np.full(len(self.right), self.objects))

    @property
    def f1(self) -> np.ndarray:
        """(M,) their harmonic mean, 0 where nothing is found; NaN where there is neither detection nor object."""
        return _ratio(2 * self.right, self.right + self.wrong + self.objects)

    def best(self) -> int:
        """Where F1 is largest, the highest of such thresholds; -1 where no detection is right."""
        return len(self.f1) - 1 - int(np.argmax(self.f1[::-1])) if self.right.any() else -1


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


@dataclass(frozen=True)
class Calibration:
    """Of B bins of equal width: detections, their mean score and the share that is right; NaN where a bin is empty.

    Attributes:
        edges: (B + 1,).
        count, score, right: (B,).
        error: expected calibration error, the mean gap between ``score`` and ``right`` over all detections.
    """

    edges: np.ndarray
    count: np.ndarray
    score: np.ndarray
    right: np.ndarray
    error: float


@dataclass(frozen=True)
class Matches:
    """N detections, sorted by class and falling score, and the objects that they found, at T overlaps.

    Attributes:
        truth: I images, K classes, A objects.
        index: (N,) positions in the detections as given; those over the limit of an image and class are left out.
        image, category: (N,) positions in the images and classes of ``truth``.
        score: (N,) float64.
        box: (N, 4) ``x, y, width, height``.
        ious: T overlaps.
        taken: (T, N) int32 the object of its class that a detection found, or the crowd that took it; -1 for none.
    """

    truth: Dataset
    index: np.ndarray
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    box: np.ndarray
    ious: tuple[float, ...]
    taken: np.ndarray

    @cached_property
    def outcomes(self) -> np.ndarray:
        """(T, N) int8: RIGHT, WRONG, or NOT_COUNTED for what a crowd took."""
        crowd = np.append(self.truth.iscrowd == 1, False)[self.taken]
        return np.where(self.taken < 0, WRONG, np.where(crowd, NOT_COUNTED, RIGHT)).astype(np.int8)

    def of_class(self, category: int) -> slice:
        """Where its detections stand."""
        return slice(*np.searchsorted(self.category, [category, category + 1]).tolist())

    @cached_property
    def partner(self) -> np.ndarray:
        """(N,) int32 the object of whatever class that a detection takes, or a crowd; -1 for none: of the confusion."""
        order = np.lexsort((-self.score, self.image))
        partner = np.full(len(order), -1, dtype=np.int32)
        where = self.image[order], self.truth.image
        partner[order] = _greedy(self.box[order], where[0], self.truth, where[1], (IOU,))[0]
        return partner

    def objects(self, category: int | None = None) -> int:
        """How many there are to find; crowds do not count."""
        counted = self.truth.iscrowd == 0
        return int(counted.sum() if category is None else (counted & (self.truth.category == category)).sum())

    def curve(self, category: int | None = None, thresholds: np.ndarray | None = None) -> Curve:
        """Counts of one class, or of all together, at ``thresholds`` or at every score that there is."""
        chosen = slice(None) if category is None else self.of_class(category)
        score, outcome = self.score[chosen], self.outcomes[0][chosen]
        order = np.argsort(score, kind="stable")
        score, outcome = score[order], outcome[order]
        at = np.unique(score) if thresholds is None else thresholds
        first = np.searchsorted(score, at)
        right, wrong = (
            np.append(np.cumsum((outcome == kind)[::-1])[::-1], 0)[first].astype(np.int64) for kind in (RIGHT, WRONG)
        )
        return Curve(at, right, wrong, self.objects(category))

    def confusion(self, threshold: float) -> np.ndarray:
        """(K + 1, K + 1) counts: row, the class of the object, last for none; column, that of the detection likewise.

        By falling score each detection takes the free object that it overlaps most, by 0.5 or more, of whatever class.
        """
        classes = len(self.truth.class_names)
        kept = self.score >= threshold
        partner = self.partner[kept]
        crowd = np.append(self.truth.iscrowd == 1, False)[partner]
        rows = np.where(partner < 0, classes, np.append(self.truth.category, 0)[partner])[~crowd]
        matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
        np.add.at(matrix, (rows, self.category[kept][~crowd]), 1)
        missed = self.truth.iscrowd == 0
        missed[partner[partner >= 0]] = False
        matrix[:classes, classes] = np.bincount(self.truth.category[missed], minlength=classes)
        return matrix

    def calibration(self, category: int | None = None, bins: int = BINS) -> Calibration:
        """How far scores are shares of right detections; what a crowd took is left out. Scores are 0 to 1."""
        outcome = self.outcomes[0]
        counted = outcome != NOT_COUNTED
        if category is not None:
            counted &= self.category == category
        edges = np.linspace(0, 1, bins + 1)
        score = self.score[counted]
        place = np.searchsorted(edges[1:-1], score)
        count = np.bincount(place, minlength=bins)
        mean = _ratio(np.bincount(place, score, bins), count)
        right = _ratio(np.bincount(place, outcome[counted] == RIGHT, bins), count)
        error = float(np.nansum(count * np.abs(mean - right)) / count.sum()) if count.sum() else float("nan")
        return Calibration(edges, count, mean, right, error)

    def results(self) -> dict[str, float]:
        """The best F1 (0 to 100), its precision and recall, and its threshold (0 to 1), over all and by class.

        ``F1``, ``precision``, ``recall``, ``threshold``, ``ECE``, then ``F1-<class>`` and ``threshold-<class>``;
        NaN where no detection is right.
        """
        curve = self.curve()
        at = curve.best()
        values = {
            "F1": 100 * _at(curve.f1, at),
            "precision": 100 * _at(curve.precision, at),
            "recall": 100 * _at(curve.recall, at),
            "threshold": _at(curve.thresholds, at),
            "ECE": 100 * self.calibration().error,
        }
        classes = [self.curve(k) for k in range(len(self.truth.class_names))]
        for name, curve in zip(self.truth.class_names, classes, strict=True):
            values[f"F1-{name}"] = 100 * _at(curve.f1, curve.best())
        for name, curve in zip(self.truth.class_names, classes, strict=True):
            values[f"threshold-{name}"] = _at(curve.thresholds, curve.best())
        return values

    def tables(self) -> dict[str, Any]:
        """What results.json holds beside :meth:`results`: curves on :data:`GRID`, confusion, calibration."""
        best = self.curve()
        threshold = _at(best.thresholds, best.best())
        calibration = self.calibration()
        return {
            "iou": IOU,
            "thresholds": GRID.tolist(),
            "all": _columns(self.curve(thresholds=GRID)),
            "classes": {
                name: _columns(self.curve(k, GRID)) for k, name in enumerate(self.truth.class_names)
            },
            "confusion": {
                "threshold": threshold,
                "rows": "objects, the last: none",
                "columns": "detections, the last: none",
                "classes": list(self.truth.class_names),
                "counts": self.confusion(threshold if threshold == threshold else 0.0).tolist(),
            },
            "calibration": {
                "ECE": 100 * calibration.error,
                "edges": calibration.edges.round(6).tolist(),
                "detections": calibration.count.tolist(),
                "mean_score": calibration.score.tolist(),
                "share_right": calibration.right.tolist(),
            },
        }  # fmt: skip


def _at(values: np.ndarray, place: int) -> float:
    return float(values[place]) if place >= 0 else float("nan")


def _columns(curve: Curve) -> dict[str, list[float]]:
    names = ("precision", "recall", "f1")
    return {"objects": curve.objects, **{name: getattr(curve, name).round(6).tolist() for name in names}}


def match(truth: Dataset, detections: Detections, *, ious: Sequence[float] = (IOU,), limit: int = 100) -> Matches:
    """Match boxes as pycocotools does: by falling score each takes the free object of its class that it overlaps most.

    Args:
        truth: with annotations.
        detections: with boxes.
        ious: the least overlaps, each matched on its own.
        limit: detections of each class in an image, the best.

    Raises:
        UserError: detections of images or classes that ``truth`` does not have, or with NaN.
    """
    check_detections(truth, detections)
    image, category = (
        positions(detections.image_ids, truth.image_ids),
        positions(detections.category_ids, truth.category_ids),
    )
    group = category * len(truth.image_ids) + image
    order = np.lexsort((-detections.scores, group))
    order = order[_rank(group[order]) < limit]
    boxes = detections.boxes[order].astype(float)
    group_of_object = truth.category * len(truth.image_ids) + truth.image
    taken = _greedy(boxes, group[order], truth, group_of_object, ious)
    within = np.lexsort((-detections.scores[order], category[order]))  # stable: among equals the earlier image first
    order = order[within]
    columns = image[order], category[order], detections.scores[order], boxes[within]
    return Matches(truth, order, *columns, tuple(ious), taken[:, within])


def _rank(group: np.ndarray) -> np.ndarray:
    """Which of its group each is, 0 first; members of a group stand together."""
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))


def _greedy(
    boxes: np.ndarray, group: np.ndarray, truth: Dataset, group_of_object: np.ndarray, ious: Sequence[float]
) -> np.ndarray:
    """(T, N) int32 the object that each detection takes in its group, -1 for none.

    Args:
        boxes, group: (N, 4), (N,) of the detections, those of a group together and by falling score.
        group_of_object: (A,).
    """
    found, which, overlap = overlapping(boxes, group, truth, group_of_object, min(ious))
    crowd = truth.iscrowd == 1
    turn = np.zeros(len(boxes), dtype=np.int64)
    able = np.unique(found)
    turn[able] = _rank(group[able])  # detections of one turn are of different groups
    order = np.argsort(turn[found], kind="stable")
    found, which, overlap = found[order], which[order], overlap[order]
    rounds = np.searchsorted(turn[found], np.arange(turn.max(initial=-1) + 2))
    taken = np.full((len(ious), len(boxes)), -1, dtype=np.int32)
    for row, iou in enumerate(ious):
        free = np.ones(len(truth), dtype=bool)
        for start, end in zip(rounds[:-1], rounds[1:], strict=True):
            at = start + np.flatnonzero(
                (overlap[start:end] >= min(iou, 1 - 1e-10)) & (free[which[start:end]] | crowd[which[start:end]])
            )
            if not len(at):
                continue
            firsts = np.flatnonzero(np.append(True, found[at[1:]] != found[at[:-1]]))
            value = np.where(crowd[which[at]], overlap[at] - 2, overlap[at])  # a crowd only where nothing else is free
            best = np.maximum.reduceat(value, firsts)
            is_best = value == np.repeat(best, np.diff(np.append(firsts, len(at))))
            last = np.maximum.reduceat(np.where(is_best, np.arange(len(at)), -1), firsts)  # as pycocotools among equals
            chosen = at[last]
            taken[row, found[chosen]] = which[chosen]
            free[which[chosen]] = False
    return taken


def overlapping(
    boxes: np.ndarray, group: np.ndarray, truth: Dataset, group_of_object: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections and objects of one group that overlap by ``least`` or more: (P,) positions of both, and how much.

    A crowd overlaps by the part of the detection that lies in it. Detections rise.
    """
    order = np.argsort(group_of_object, kind="stable")
    sorted_groups = group_of_object[order]
    first, end = np.searchsorted(sorted_groups, group), np.searchsorted(sorted_groups, group, side="right")
    able = np.flatnonzero(end > first)
    parts = []
    total = np.cumsum(end[able] - first[able])
    cuts = np.searchsorted(total, np.arange(_PAIRS, total[-1] if len(total) else 0, _PAIRS))
    for rows in np.split(able, np.unique(cuts)):
        number = end[rows] - first[rows]
        found = np.repeat(rows, number)
        offset = np.arange(len(found)) - np.repeat(np.cumsum(number) - number, number)
        which = order[first[found] + offset]
        overlap = iou(boxes[found], truth.boxes[which], truth.iscrowd[which] == 1)
        kept = overlap >= min(least, 1 - 1e-10)
        parts.append((found[kept], which[kept], overlap[kept]))
    found, which, overlap = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found, which, overlap


def iou(box: np.ndarray, real: np.ndarray, crowd: np.ndarray | bool = False) -> np.ndarray:
    """(P,) IoU of pairs of boxes, in pycocotools' order of operations; with a crowd, the part of ``box`` inside it."""
    side = np.minimum(box[:, :2] + box[:, 2:], real[:, :2] + real[:, 2:]) - np.maximum(box[:, :2], real[:, :2])
    shared = np.where((side > 0).all(axis=1), side[:, 0] * side[:, 1], 0.0)
    area = box[:, 2] * box[:, 3]
    union = np.where(crowd, area, area + real[:, 2] * real[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros(len(shared)), where=shared > 0)
