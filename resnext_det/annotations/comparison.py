"""Is one detector better than another? A paired bootstrap over images, from detections matched once.

Resampled images are weights of what was matched, so nothing is evaluated again, and the AP of every sample is the one
pycocotools gives for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .coco import Detections
from .dataset import Dataset
from .thresholds import NOT_COUNTED, RIGHT, Matches, match

IOUS = tuple(np.linspace(0.5, 0.95, 10))
_RECALLS = np.linspace(0, 1, 101)
_SAMPLES = 50  # summed at a time


@dataclass(frozen=True)
class Difference:
    """Of a metric, 0 to 100, in the second set of detections less that in the first.

    Attributes:
        first, second: on all images; NaN without ground truth.
        low, high: ends of the interval that holds the chosen share of the samples; NaN without ground truth.
        better: share of the samples in which the second is better, ties by half.
    """

    first: float
    second: float
    low: float
    high: float
    better: float

    @property
    def value(self) -> float:
        return self.second - self.first


def weighted_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP (K, T, B) by class, overlap and sample, 0 to 1; NaN where a sample has no object of a class.

    Args:
        matches: at T overlaps.
        weights: (I, B) integers, how often each sample holds each image. Among detections of equal score, the copies of
            one stand together.
    """
    truth, classes = matches.truth, len(matches.truth.class_names)
    found = np.full((classes, len(matches.ious), weights.shape[1]), np.nan)
    counted = truth.iscrowd == 0
    for k in range(classes):
        here = matches.of_class(k)
        images = truth.image[counted & (truth.category == k)]
        objects = weights[images].sum(axis=0, dtype=np.int32)
        weight = weights[matches.image[here]]
        seen = np.cumsum(weight, axis=0, dtype=np.int32)
        for t, outcome in enumerate(matches.outcomes):
            found[k, t] = _mean_precision(weight, seen, outcome[here], objects)
    return found


def _mean_precision(weight: np.ndarray, seen: np.ndarray, outcome: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """pycocotools' mean of the precisions at 101 recalls, which are reached at right detections: others only count.

    Args:
        weight, seen: (n, B) of detections by falling score, and their sums so far.
        outcome: (n,).
        objects: (B,) to find.
    """
    right, ignored = np.flatnonzero(outcome == RIGHT), np.flatnonzero(outcome == NOT_COUNTED)
    tp = np.cumsum(weight[right], axis=0, dtype=np.int32)
    counted = seen[right]
    if len(ignored):
        before = np.cumsum(weight[ignored], axis=0, dtype=np.int32)
        counted -= np.pad(before, ((1, 0), (0, 0)))[np.searchsorted(ignored, right)]
    precision = tp / (counted + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = tp / np.maximum(objects, 1)
    reached = (recall * 100).astype(
        np.int32
    )  # the last of the recalls that is not above; the product may be off by one
    reached -= _RECALLS[reached] > recall
    reached += _RECALLS[np.minimum(reached + 1, 100)] <= recall
    np.minimum(reached, 100, out=reached)
    gained = np.diff(reached, axis=0, prepend=-1)
    return np.where(objects > 0, np.einsum("nb,nb->b", envelope, gained) / len(_RECALLS), np.nan)


def compare(
    truth: Dataset,
    first: Detections,
    second: Detections,
    *,
    samples: int = 1000,
    share: float = 0.95,
    seed: int = 0,
    limit: int = 100,
) -> dict[str, Difference]:
    """The difference of two detectors on one set: ``AP``, ``AP50``, then ``AP-<class>`` and ``AP50-<class>``.

    Args:
        truth: with annotations.
        first, second: boxes found in the same images.
        samples: of as many images as the set has, drawn with replacement; both detectors see the same.
        share: of the samples that an interval holds.
        seed: of the samples.
        limit: detections of each class in an image, the best.

    Raises:
        UserError: as :func:`.thresholds.match`; a set without images.
    """
    images = len(truth.image_ids)
    if not images:
        raise UserError(f"{truth.source}: no images, so there is nothing to compare")
    rng = np.random.default_rng(seed)
    weights = np.ones((images, samples + 1), dtype=np.int32)  # the first sample is the set itself
    for column in range(1, samples + 1):
        weights[:, column] = np.bincount(rng.integers(0, images, images), minlength=images)
    matched = [match(truth, side, ious=IOUS, limit=limit) for side in (first, second)]
    parts = [np.ascontiguousarray(weights[:, i : i + _SAMPLES]) for i in range(0, samples + 1, _SAMPLES)]
    sides = [np.concatenate([weighted_precision(one, part) for part in parts], axis=2) for one in matched]
    by_class = {"": slice(None), **{f"-{name}": slice(k, k + 1) for k, name in enumerate(truth.class_names)}}
    return {
        f"{metric}{name}": _difference(_mean(sides[0][part, overlaps]), _mean(sides[1][part, overlaps]), share)
        for name, part in by_class.items()
        for metric, overlaps in (("AP", slice(None)), ("AP50", slice(1)))
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """(B,) of (classes, overlaps, B), over what is not NaN."""
    number = (~np.isnan(values)).sum(axis=(0, 1))
    return np.divide(np.nansum(values, axis=(0, 1)), number, out=np.full(values.shape[2], np.nan), where=number > 0)


def _difference(first: np.ndarray, second: np.ndarray, share: float) -> Difference:
    change = (second - first)[1:]
    change = change[~np.isnan(change)]
    low = high = better = float("nan")
    if len(change):
        low, high = np.quantile(change, [(1 - share) / 2, (1 + share) / 2])
        better = float((change > 0).mean() + (change == 0).mean() / 2)
    return Difference(100 * float(first[0]), 100 * float(second[0]), 100 * float(low), 100 * float(high), better)


def summary(differences: Sequence[tuple[str, Difference]]) -> list[str]:
    """A line for each."""
    return [
        f"{name:24s} {one.first:8.2f} {one.second:8.2f} {one.value:+8.2f}  [{one.low:+.2f}, {one.high:+.2f}]"
        f"  better in {100 * one.better:.0f}%"
        for name, one in differences
    ]
