"""COCO's average precision of a set of detections, equal to pycocotools in every digit, in little time and memory.

hotcoco does the matching. It gets our columns with images, categories and annotations numbered from 1. No detectron2.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval, Params
from hotcoco import mask as mask_tools

from ..errors import UserError
from .coco import Detections, GroundTruth, listed, read_ground_truth

logger = logging.getLogger(__name__)

IOU_TYPES = ("bbox", "segm", "keypoints")
MAX_DETECTIONS = (1, 10, 100)
"""COCO's limits per image and category; average precision uses the last."""
MAX_DETECTIONS_KEYPOINTS = (20,)
COCO_SIGMAS = Params("keypoints").kpt_oks_sigmas
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
    """Match ``detections`` with ``truth`` and accumulate precision and recall.

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
    if iou_type == "keypoints":
        sigmas = list(kpt_oks_sigmas) or COCO_SIGMAS
        tables = _keypoint_tables(truth, detections, chosen, len(sigmas))
    else:
        tables = _tables(truth, detections, chosen, with_masks=iou_type == "segm")
    evaluation = COCOeval(*tables, iou_type)
    params = evaluation.params
    params.max_dets = limits
    if iou_type == "keypoints":
        params.kpt_oks_sigmas = sigmas
    evaluation.evaluate()
    evaluation.accumulate()
    return Evaluation(
        iou_type,
        evaluation.eval["precision"],
        evaluation.eval["recall"],
        np.array(params.iou_thrs),
        np.array(params.rec_thrs),
        list(params.area_rng_lbl),
        limits,
        truth.category_ids,
        truth.class_names,
    )


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


def _numbers(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """1, 2, ... for the rising ids ``known``: pycocotools' order, and whatever the ids are, numbers for hotcoco."""
    return np.searchsorted(known, ids) + 1


def _frame(truth: GroundTruth, chosen: np.ndarray) -> tuple[list[dict], list[dict]]:
    """The images ``chosen`` and the categories as hotcoco wants them, numbered from 1."""
    known = set(chosen.tolist())
    images = [record for record in truth.images if record["id"] in known]
    sizes = [(int(record.get("height") or 0), int(record.get("width") or 0)) for record in images]
    return (
        [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes, start=1)],
        [{"id": k, "name": str(k)} for k in range(1, len(truth.categories) + 1)],
    )


def _tables(truth: GroundTruth, detections: Detections, chosen: np.ndarray, *, with_masks: bool) -> tuple[COCO, COCO]:
    """Ground truth and detections of the images ``chosen``, for boxes or masks."""
    known = set(chosen.tolist())
    records = [record for record in truth.annotations if record["image_id"] in known]
    table = COCO.from_arrays(
        *_frame(truth, chosen),
        _numbers(chosen, np.array([record["image_id"] for record in records], dtype=np.int64)),
        _numbers(truth.category_ids, np.array([record["category_id"] for record in records], dtype=np.int64)),
        np.array([record["bbox"] for record in records], dtype=float).reshape(-1, 4),
        area=np.array([record["area"] for record in records], dtype=float),
        iscrowd=np.array([record["iscrowd"] for record in records], dtype=np.int64),
        segmentation=[_needed(record, "segmentation", truth.source) for record in records] if with_masks else None,
    )
    here = np.flatnonzero(np.isin(detections.image_ids, chosen))
    columns = np.column_stack([
        _numbers(chosen, detections.image_ids[here]),
        np.zeros((len(here), 4)) if with_masks else detections.boxes[here].astype(float),
        detections.scores[here],
        _numbers(truth.category_ids, detections.category_ids[here]),
    ])  # fmt: skip
    if not with_masks:
        return table, table.load_res(columns)
    sizes = detections.mask_sizes[here].tolist() if len(here) else []
    masks = [{"size": size, "counts": detections.masks[i]} for size, i in zip(sizes, here.tolist(), strict=True)]
    found = table.load_res(columns, segmentation=masks)
    if masks:  # small, medium and large go by the mask, not by the box around it
        found.update_anns(ids=np.arange(1, len(masks) + 1), area=np.asarray(mask_tools.area(masks), dtype=float))
    return table, found


def _keypoint_tables(truth: GroundTruth, detections: Detections, chosen: np.ndarray, number: int) -> tuple[COCO, COCO]:
    """The like for keypoints, which hotcoco reads from records only; ``number`` is how many an object has."""
    known = set(chosen.tolist())
    objects = []
    for record in truth.annotations:
        if record["image_id"] not in known:
            continue
        objects.append({
            "id": len(objects) + 1,
            "image_id": int(_numbers(chosen, record["image_id"])),
            "category_id": int(_numbers(truth.category_ids, record["category_id"])),
            **{key: record[key] for key in ("bbox", "area", "iscrowd")},
            **{key: _needed(record, key, truth.source) for key in ("keypoints", "num_keypoints")},
        })  # fmt: skip
    found = []
    for i in np.flatnonzero(np.isin(detections.image_ids, chosen)).tolist():
        points = detections.keypoints[i]
        found.append({
            "image_id": int(_numbers(chosen, detections.image_ids[i])),
            "category_id": int(_numbers(truth.category_ids, detections.category_ids[i])),
            "keypoints": points.tolist(),
            "score": float(detections.scores[i]),
            **({"bbox": detections.boxes[i].tolist()} if np.isfinite(detections.boxes[i]).all() else {}),
        })  # fmt: skip
    for records, name in ((objects, "ground truth"), (found, "detections")):
        if records and len(records[0]["keypoints"]) != 3 * number:
            raise UserError(
                f"TEST.KEYPOINT_OKS_SIGMAS: {number} sigmas, but the {name} have {len(records[0]['keypoints']) // 3} "
                "keypoints; give one for each"
            )
    images, categories = _frame(truth, chosen)
    table = COCO({"images": images, "categories": categories, "annotations": objects})
    return table, table.load_res(found)


def _needed(record: dict, key: str, source: str) -> Any:
    value = record.get(key)
    if not value and value != 0:
        name = record.get("id", f"number {record['number']}")
        raise UserError(f"{source}: annotation {name} has no {key}; without it only bbox can be evaluated")
    return value


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
