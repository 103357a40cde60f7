"""Numbers at every threshold: matches against pycocotools, curves, calibration and confusion against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from coco_sets import pycocotools, random_set
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve

from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.comparison import IOUS
from resnext_det.annotations.thresholds import NOT_COUNTED, RIGHT, match


def matched(seed: int, **choices):
    truth, detections = random_set(seed)
    return match(read_ground_truth(truth), Detections.from_records(detections), **choices), truth, detections


@pytest.mark.parametrize("seed", range(2))
def test_matches_are_those_of_pycocotools_at_every_overlap(seed):
    ours, truth, detections = matched(seed, ious=IOUS)
    theirs = pycocotools(truth, detections)
    compared = 0
    for found in theirs.evalImgs:
        if found is None or found["aRng"] != theirs.params.areaRng[0]:
            continue
        image = np.flatnonzero(ours.truth.image_ids == found["image_id"])[0]
        category = np.flatnonzero(ours.truth.category_ids == found["category_id"])[0]
        here = (ours.image == image) & (ours.category == category)
        assert ours.score[here].tolist() == found["dtScores"]
        right = (found["dtMatches"] > 0) & ~found["dtIgnore"].astype(bool)
        assert np.array_equal(ours.outcomes[:, here] == RIGHT, right)
        assert np.array_equal(ours.outcomes[:, here] == NOT_COUNTED, found["dtIgnore"].astype(bool))
        compared += here.sum()
    assert compared == len(ours.score) and (ours.outcomes == NOT_COUNTED).any()
    order = np.argsort(-ours.score, kind="stable")  # images in their order among equal scores, as pycocotools sorts
    for k in range(len(ours.truth.class_names)):
        here = order[ours.category[order] == k]
        assert np.array_equal(ours.image[ours.of_class(k)], ours.image[here])


def test_curves_are_those_of_scikit_learn():
    ours, _, _ = matched(2)
    for category in (None, 0, 3, 8):
        here = ours.outcomes[0] != NOT_COUNTED
        here &= True if category is None else ours.category == category
        labels = ours.outcomes[0][here] == RIGHT
        if not labels.any():
            continue
        precision, recall, at = precision_recall_curve(labels, ours.score[here])
        curve = ours.curve(category, at)
        assert np.allclose(curve.precision, precision[:-1], atol=1e-12)
        assert np.allclose(curve.recall, recall[:-1] * labels.sum() / ours.objects(category), atol=1e-12)
        both = curve.precision + curve.recall
        f1 = 2 * curve.precision * curve.recall / np.where(both > 0, both, 1)
        assert np.allclose(curve.f1, f1, atol=1e-12) and f1[curve.best()] == f1.max()
        every = ours.curve(category)
        assert every.thresholds[every.best()] == pytest.approx(curve.thresholds[curve.best()])


def test_calibration_is_that_of_scikit_learn():
    ours, _, _ = matched(3)
    counted = ours.outcomes[0] != NOT_COUNTED
    right, score = ours.outcomes[0][counted] == RIGHT, ours.score[counted]
    share, mean = calibration_curve(right, score, n_bins=15)
    found = ours.calibration()
    there = found.count > 0
    assert np.allclose(found.right[there], share) and np.allclose(found.score[there], mean)
    assert found.error == pytest.approx((found.count[there] * abs(share - mean)).sum() / counted.sum())
    assert np.isnan(found.score[~there]).all() and found.count.sum() == counted.sum()


def test_confusion_is_that_of_a_plain_loop_and_scikit_learn():
    ours, _, _ = matched(4)
    truth, none = ours.truth, len(ours.truth.class_names)
    for threshold in (0.0, 0.37, 0.8):
        pairs, taken = [], set()
        for i in np.argsort(-ours.score, kind="stable"):
            if ours.score[i] < threshold:
                continue
            best, chosen, x = 0.5, None, ours.box[i]
            inside = False
            for j in np.flatnonzero(truth.image == ours.image[i]):
                y = truth.boxes[j]
                shared = [max(min(x[a] + x[a + 2], y[a] + y[a + 2]) - max(x[a], y[a]), 0) for a in (0, 1)]
                shared = shared[0] * shared[1]
                if truth.iscrowd[j]:
                    inside |= shared / (x[2] * x[3]) >= 0.5
                elif j not in taken and shared / (x[2] * x[3] + y[2] * y[3] - shared) >= best:
                    best, chosen = shared / (x[2] * x[3] + y[2] * y[3] - shared), j
            if chosen is not None:
                taken.add(chosen)
                pairs.append((truth.category[chosen], ours.category[i]))
            elif not inside:
                pairs.append((none, ours.category[i]))
        pairs += [(truth.category[j], none) for j in np.flatnonzero(truth.iscrowd == 0) if j not in taken]
        oracle = confusion_matrix(*zip(*pairs, strict=True), labels=range(none + 1))
        found = ours.confusion(threshold)
        assert np.array_equal(found, oracle)
        assert found[:none].sum() == ours.objects()


def test_results_name_the_best_thresholds_and_nothing_is_nan_or_zero_by_chance():
    ours, _, _ = matched(5)
    results, tables = ours.results(), ours.tables()
    curve = ours.curve()
    assert results["F1"] == 100 * np.nanmax(curve.f1)
    at = curve.thresholds == results["threshold"]
    assert results["precision"] == 100 * curve.precision[at][0] and results["recall"] == 100 * curve.recall[at][0]
    empty = ours.truth.class_names[-1]  # has detections and no objects
    assert np.isnan(results[f"threshold-{empty}"]) and tables["classes"][empty]["objects"] == 0
    assert len(tables["all"]["f1"]) == len(tables["thresholds"]) == 101
    assert np.sum(tables["confusion"]["counts"]) > 0
    nothing = match(ours.truth, Detections.empty())
    assert np.isnan(nothing.results()["threshold"]) and nothing.confusion(0.5)[:, :-1].sum() == 0
    assert nothing.confusion(0.5)[:, -1].sum() == nothing.objects() and nothing.curve().best() == -1
