"""COCO's average precision of a set of detections, equal to pycocotools in every digit, in little time and memory.

faster-coco-eval does the matching. Average precision is a mean over categories that never see each other, so one
category is evaluated at a time: only its detections are ever Python objects, the rest stay arrays. No detectron2.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_tools
from faster_coco_eval.core.cocoeval import Params

from ..errors import UserError
from .coco import Detections, GroundTruth, listed, read_ground_truth

logger = logging.getLogger(__name__)

IOU_TYPES = ("bbox", "segm", "keypoints")
MAX_DETECTIONS = (1, 10, 100)
"""COCO's limits per image and category; average precision uses the last."""
MAX_DETECTIONS_KEYPOINTS = (20,)
AREA_LETTERS = {"small": "s", "medium": "m", "large": "l"}
SCORE_THRESHOLD = 0.05
"""detectron2's usual ``MODEL.ROI_HEADS.SCORE_THRESH_TEST``: above it detections that AP counts are cut away."""


@dataclass
class Evaluation:
    """What COCO's evaluation found.

    Attributes:
        iou_type: ``bbox``, ``segm`` or ``keypoints``.
        precision: (T, R, K, A, M) at IoU thresholds, recalls 0, 0.01 … 1, categories, areas and limits per image;
            -1 where a category has no ground truth of that area.
        recall: (T, K, A, M), -1 likewise.
        iou_thresholds: (T,) 0.5 … 0.95.
        recall_thresholds: (R,).
        areas: A names, ``all`` first.
        max_detections: M limits per image and category.
        category_ids: K ids, rising; ``class_names`` goes with them.
    """

    iou_type: str
    precision: np.ndarray
    recall: np.ndarray
    iou_thresholds: np.ndarray
    recall_thresholds: np.ndarray
    areas: list[str]
    max_detections: list[int]
    category_ids: np.ndarray
    class_names: list[str]

    def average_precision(self, iou: float | None = None, area: str = "all", category: int | None = None) -> float:
        """Mean precision over recalls, and over IoU thresholds and categories unless one is given; NaN without any."""
        thresholds = slice(None) if iou is None else np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        categories = slice(None) if category is None else [category]
        return _mean(self.precision[thresholds][:, :, categories, self.areas.index(area), -1])

    def average_recall(self, limit: int | None = None, area: str = "all", iou: float | None = None) -> float:
        """Mean of the highest recalls with at most ``limit`` detections per image and category."""
        thresholds = slice(None) if iou is None else np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        column = -1 if limit is None else self.max_detections.index(limit)
        return _mean(self.recall[thresholds][:, :, self.areas.index(area), column])

    def results(self) -> dict[str, float]:
        """detectron2's metrics (0 to 100, NaN where nothing can be said): ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``,
        ``APl``, then recalls ``AR1``, ``AR10``, ``AR100``, ``ARs`` …, then ``AP-<class>`` and ``AP50-<class>``.
        """
        values = {"AP": self.average_precision(), "AP50": self.average_precision(0.5)}
        values["AP75"] = self.average_precision(0.75)
        for area in self.areas[1:]:
            values["AP" + AREA_LETTERS[area]] = self.average_precision(area=area)
        for limit in self.max_detections:
            values[f"AR{limit}"] = self.average_recall(limit)
        for area in self.areas[1:]:
            values["AR" + AREA_LETTERS[area]] = self.average_recall(area=area)
        for k, name in enumerate(self.class_names):
            values[f"AP-{name}"] = self.average_precision(category=k)
        for k, name in enumerate(self.class_names):
            values[f"AP50-{name}"] = self.average_precision(0.5, category=k)
        return {name: float(value * 100) for name, value in values.items()}

    def reasons(self) -> list[str]:
        """A sentence for each kind of NaN in :meth:`results`."""
        seen = self.recall[0, :, :, -1] > -1  # categories x areas
        sentences = []
        for position, area in enumerate(self.areas):
            if not seen[:, position].any():
                size = "" if area == "all" else f"{area} "
                names = f"AP{AREA_LETTERS.get(area, '')} and AR{AREA_LETTERS.get(area, '')}"
                sentences.append(f"{names} are NaN: the ground truth holds no {size}object that counts.")
        absent = [name for name, present in zip(self.class_names, seen[:, 0], strict=True) if not present]
        if absent and len(absent) < len(self.class_names):
            sentences.append(
                f"AP is NaN for {len(absent)} of {len(self.class_names)} classes, which have no ground truth, and "
                f"they are left out of the means: {listed(absent)}."
            )
        return sentences


def _mean(values: np.ndarray) -> float:
    """pycocotools' mean: over what is not -1, in its order, so that even the last digit agrees."""
    values = values[values > -1]
    return float(np.mean(values)) if values.size else math.nan


def evaluate(
    truth: GroundTruth,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    max_detections: Sequence[int] | None = None,
    image_ids: Iterable[int] | None = None,
    kpt_oks_sigmas: Sequence[float] = (),
) -> Evaluation:
    """Match ``detections`` with ``truth`` category by category and accumulate precision and recall.

    With ``segm`` small, medium and large go by the mask's area, as in detectron2, also where records carry boxes.

    Args:
        truth: with annotations, and with their masks for ``segm``.
        detections: in any order; among equal scores of one image the earlier counts as the better.
        iou_type: ``bbox``, ``segm`` or ``keypoints``.
        max_detections: rising limits per image and category (default 1, 10, 100; 20 for keypoints).
        image_ids: evaluate these images only.
        kpt_oks_sigmas: for keypoints, one per keypoint; COCO's seventeen by default.

    Raises:
        UserError: detections of images or categories that ``truth`` does not have, or with NaN.
    """
    if iou_type not in IOU_TYPES:
        raise UserError(f"iou_type {iou_type!r}: choose one of {', '.join(IOU_TYPES)}")
    if truth.annotations is None:
        raise UserError(f"{truth.source}: no annotations, so there is nothing to compare with")
    limits = list(max_detections or (MAX_DETECTIONS_KEYPOINTS if iou_type == "keypoints" else MAX_DETECTIONS))
    check_detections(truth, detections, iou_type)
    known = truth.image_ids
    chosen = known if image_ids is None else np.intersect1d(known, list(image_ids))
    # 1, 2, … in the order of the ids: pycocotools' order, whatever the ids are.
    position = {image_id: i for i, image_id in enumerate(chosen.tolist(), start=1)}
    sizes = {position[r["id"]]: (r.get("height"), r.get("width")) for r in truth.images if r["id"] in position}

    annotations: dict[int, list[dict]] = {}
    for record in truth.annotations:
        if record["image_id"] in position:
            annotations.setdefault(record["category_id"], []).append(record)
    order, starts = _order(detections, chosen, truth.category_ids, limits[-1])

    parts = []
    with _no_cycle_search():
        for k, category_id in enumerate(truth.category_ids.tolist()):
            gt = [_annotation(record, position, iou_type, truth.source) for record in annotations.get(category_id, ())]
            found = _records(detections, order[starts[k] : starts[k + 1]], chosen, iou_type)
            parts.append(_evaluate_category(gt, found, iou_type, limits, sizes, kpt_oks_sigmas))
    params = Params(iouType=iou_type)
    return Evaluation(
        iou_type,
        np.concatenate([precision for precision, _ in parts], axis=2),
        np.concatenate([recall for _, recall in parts], axis=1),
        params.iouThrs,
        params.recThrs,
        list(params.areaRngLbl),
        limits,
        truth.category_ids,
        truth.class_names,
    )


@contextlib.contextmanager
def _no_cycle_search() -> Iterator[None]:
    """Python's search for reference cycles, called again and again by hundreds of thousands of small records without
    any, would take 40% of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def check_detections(truth: GroundTruth, detections: Detections, iou_type: str = "bbox") -> None:
    """Refuse detections that belong to another data set or hold NaN.

    Raises:
        UserError: naming the foreign image ids or category ids, or the first detection with NaN.
    """
    foreign = np.setdiff1d(detections.image_ids, truth.image_ids)
    if foreign.size:
        raise UserError(
            f"{detections.source}: image_id {listed(foreign.tolist())} not among the images of {truth.source}; "
            "evaluate on the set that was predicted"
        )
    foreign = np.setdiff1d(detections.category_ids, truth.category_ids)
    if foreign.size:
        raise UserError(
            f"{detections.source}: category_id {listed(foreign.tolist())} not among the categories of {truth.source} "
            f"({listed(truth.category_ids.tolist())}); write the data set's own ids"
        )
    if len(detections) and iou_type == "segm" and detections.masks is None:
        raise UserError(f"{detections.source}: no segmentation in the detections; evaluate bbox")
    if len(detections) and iou_type == "keypoints" and detections.keypoints is None:
        raise UserError(f"{detections.source}: no keypoints in the detections; evaluate bbox")
    values = {"bbox": detections.boxes, "keypoints": detections.keypoints}.get(iou_type)
    bad = ~np.isfinite(detections.scores)
    if values is not None:
        bad |= ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise UserError(
            f"{detections.source}: {int(bad.sum())} detections hold NaN or infinity, the first is number "
            f"{int(bad.argmax())} of image {int(detections.image_ids[bad.argmax()])}; has the model diverged?"
        )


def _order(
    detections: Detections, image_ids: np.ndarray, category_ids: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the best ``limit`` detections of each image and category, sorted by category, image and falling
    score, and where each category begins (one more than there are categories)."""
    here = np.flatnonzero(np.isin(detections.image_ids, image_ids))
    category, image = detections.category_ids[here], detections.image_ids[here]
    order = np.lexsort((-detections.scores[here], image, category))  # stable: among equals the earlier comes first
    category, image = category[order], image[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (category[1:] != category[:-1]) | (image[1:] != image[:-1])
    starts = np.flatnonzero(first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    kept = rank < limit
    order, category = here[order[kept]], category[kept]
    return order, np.append(np.searchsorted(category, category_ids), len(order))


def _annotation(record: dict, position: Mapping[int, int], iou_type: str, source: str) -> dict:
    """One annotation as faster-coco-eval wants it: no more than it reads, since it keeps all it gets."""
    made = {
        "id": record["number"],
        "image_id": position[record["image_id"]],
        "category_id": 1,
        "bbox": record["bbox"],
        "area": record["area"],
        "iscrowd": record["iscrowd"],
    }
    needed = {"segm": ("segmentation",), "keypoints": ("keypoints", "num_keypoints")}.get(iou_type, ())
    for key in needed:
        if not record.get(key) and record.get(key) != 0:
            name = record.get("id", f"number {record['number']}")
            raise UserError(f"{source}: annotation {name} has no {key}, which {iou_type} needs; evaluate bbox")
        made[key] = record[key]
    return made


def _records(detections: Detections, index: np.ndarray, image_ids: np.ndarray, iou_type: str) -> list[dict]:
    """The detections at ``index`` as faster-coco-eval wants them."""
    images = (np.searchsorted(image_ids, detections.image_ids[index]) + 1).tolist()
    scores = detections.scores[index].tolist()
    boxes = detections.boxes[index].tolist()
    records = [
        {"id": i, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
         "score": score}
        for i, (image, box, score) in enumerate(zip(images, boxes, scores, strict=True), start=1)
    ]  # fmt: skip
    if iou_type == "segm":
        for record, i in zip(records, index.tolist(), strict=True):
            record["segmentation"] = {"size": detections.mask_sizes[i].tolist(), "counts": detections.masks[i]}
            record["area"] = mask_tools.area(record["segmentation"])
    elif iou_type == "keypoints":
        for record, keypoints in zip(records, detections.keypoints[index], strict=True):
            record["keypoints"] = keypoints.tolist()
            if not np.isfinite(record["bbox"]).all():  # the file held keypoints alone: the box around them
                x, y = keypoints[0::3], keypoints[1::3]
                record["area"] = float((x.max() - x.min()) * (y.max() - y.min()))
    return records


def _evaluate_category(
    annotations: list[dict],
    detections: list[dict],
    iou_type: str,
    limits: list[int],
    sizes: Mapping[int, tuple[int, int]],
    kpt_oks_sigmas: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """pycocotools' precision (T, R, 1, A, M) and recall (T, 1, A, M); nothing else outlives the call."""
    # Images without either say nothing. COCOeval wants one at least.
    images = sorted({record["image_id"] for records in (annotations, detections) for record in records}) or [1]
    image_records = [
        {"id": i, "height": sizes[i][0], "width": sizes[i][1]} if i in sizes else {"id": i} for i in images
    ]
    tables = []
    for records in (annotations, detections):
        table = COCO()
        table.dataset = {"images": image_records, "annotations": records, "categories": [{"id": 1, "name": "1"}]}
        table.createIndex()
        tables.append(table)
    evaluation = COCOeval_faster(*tables, iou_type, print_function=lambda *_: None)
    evaluation.params.imgIds, evaluation.params.catIds = images, [1]
    evaluation.params.maxDets = limits
    if iou_type == "keypoints":
        if len(kpt_oks_sigmas):
            evaluation.params.kpt_oks_sigmas = np.asarray(kpt_oks_sigmas, dtype=float)
        _check_keypoints(annotations, detections, len(evaluation.params.kpt_oks_sigmas))
    second, thresholds = _with_second_match(evaluation.params, annotations)
    evaluation.params.recThrs = thresholds
    evaluation.evaluate()
    evaluation.accumulate()
    return _as_pycocotools(evaluation.eval["precision"], second), evaluation.eval["recall"]


# pycocotools divides by (matches + misses + 2.2e-16), faster-coco-eval does not. It shows in one place: a precision of
# one match and no miss is 0.9999999999999998 there and 1 here; with two matches both round to 1. Which of the two a
# precision of 1 comes from is seen at the recall of the second match, so that recall is asked for as well.
_ONE_MATCH = 1 / (1 + np.spacing(1.0))


def _with_second_match(params: Params, annotations: list[dict]) -> tuple[list[int], np.ndarray]:
    """Where the recall of two matches stands for each area among the recall thresholds, and all these thresholds."""
    ignored = np.array([
        record["iscrowd"] or (params.iouType == "keypoints" and record["num_keypoints"] == 0) for record in annotations
    ], dtype=bool)  # fmt: skip
    areas = np.array([record["area"] for record in annotations], dtype=float)
    recalls = [
        2 / max(np.count_nonzero(~ignored & (areas >= low) & (areas <= high)), 1) for low, high in params.areaRng
    ]
    thresholds = np.concatenate([params.recThrs, recalls])
    order = np.argsort(thresholds, kind="stable")
    places = np.argsort(order, kind="stable")
    return places[len(params.recThrs) :].tolist(), thresholds[order]


def _as_pycocotools(precision: np.ndarray, second: list[int]) -> np.ndarray:
    """(T, R + A, 1, A, M) with the recalls of the second match -> pycocotools' (T, R, 1, A, M)."""
    found = np.delete(precision, second, axis=1)
    for area, place in enumerate(second):
        part = found[:, :, :, area]
        part[(part == 1) & (precision[:, place : place + 1, :, area] != 1)] = _ONE_MATCH
    return found


def _check_keypoints(annotations: list[dict], detections: list[dict], expected: int) -> None:
    for records, name in ((annotations, "ground truth"), (detections, "detections")):
        if records and len(records[0]["keypoints"]) != 3 * expected:
            found = len(records[0]["keypoints"]) // 3
            raise UserError(
                f"TEST.KEYPOINT_OKS_SIGMAS: {expected} sigmas, but the {name} have {found} keypoints; give one for each"
            )


def evaluate_detections(
    gt_json: str | os.PathLike | Mapping,
    detections: str | os.PathLike | Sequence[Mapping] | Detections,
    iou_type: str = "bbox",
) -> dict[str, float]:
    """COCO metrics of a result file: ``evaluate_detections("instances_val.json", "detections.json")["AP50"]``.

    Args:
        gt_json: COCO annotation file, or what it holds.
        detections: COCO result file, its records, or :class:`~resnext_det.annotations.coco.Detections`.
        iou_type: ``bbox``, ``segm`` or ``keypoints``.

    Returns:
        What :meth:`Evaluation.results` describes, 0 to 100. NaN, with the reason logged, where there is no ground
        truth; 0 where there is and nothing was detected.

    Raises:
        UserError: unusable files, or detections of images or categories that the ground truth does not have.
    """
    truth = read_ground_truth(gt_json, with_masks=iou_type == "segm")
    if isinstance(detections, (str, os.PathLike)):
        detections = Detections.from_json(detections)
    elif not isinstance(detections, Detections):
        detections = Detections.from_records(detections)
    evaluation = evaluate(truth, detections, iou_type)
    log_reasons(evaluation, len(detections))
    return evaluation.results()


def log_reasons(evaluation: Evaluation, number: int) -> None:
    """Log why numbers are NaN, and that AP is 0 when there are no detections at all."""
    if not number:
        logger.warning("No detections at all: AP is 0 for every class that has ground truth.")
    for reason in evaluation.reasons():
        logger.warning("%s: %s", evaluation.iou_type, reason)
