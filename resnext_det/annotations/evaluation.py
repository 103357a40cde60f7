"""COCO's average precision of a set of detections, equal to pycocotools in every digit, in little time and memory.

hotcoco does the matching. It gets our columns with images, categories and annotations numbered from 1. No detectron2.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval, Params
from hotcoco import mask as mask_tools

from ..errors import UserError, listed
from . import IOU_TYPES
from .coco import Detections, read_ground_truth
from .dataset import Dataset, positions

logger = logging.getLogger(__name__)

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
            values["AP" + AREA_LETTERS.get(area, area)] = self.average_precision(area=area)
        for limit in self.max_detections:
            values[f"AR{limit}"] = self.average_recall(limit)
        for area in self.areas[1:]:
            values["AR" + AREA_LETTERS.get(area, area)] = self.average_recall(area=area)
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
                letter = "" if area == "all" else AREA_LETTERS.get(area, area)
                names = f"AP{letter} and AR{letter}"
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
    truth: Dataset,
    detections: Detections,
    iou_type: str = "bbox",
    *,
    max_detections: Sequence[int] | None = None,
    areas: Mapping[str, tuple[float, float]] | None = None,
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
        areas: {name: from, to} in square pixels, in place of COCO's small, medium and large.
        image_ids: evaluate these images only.
        kpt_oks_sigmas: for keypoints, one per keypoint; COCO's seventeen by default.

    Raises:
        UserError: detections of images or categories that ``truth`` does not have, or with NaN.
    """
    global _pool_owner
    if iou_type not in IOU_TYPES:
        raise UserError(f"iou_type {iou_type!r}: choose one of {', '.join(IOU_TYPES)}")
    if not truth.annotated:
        raise UserError(f"{truth.source}: no annotations, so there is nothing to compare with")
    if _pool_owner not in (None, os.getpid()):
        return _in_a_new_process(truth, detections, iou_type, max_detections, areas, image_ids, kpt_oks_sigmas)
    limits = list(max_detections or (MAX_DETECTIONS_KEYPOINTS if iou_type == "keypoints" else MAX_DETECTIONS))
    limits = [min(limit, 1 << 31) for limit in limits]  # hotcoco's integers end somewhere
    check_detections(truth, detections, iou_type)
    chosen = np.arange(len(truth.image_ids))
    if image_ids is not None:
        chosen = np.flatnonzero(np.isin(truth.image_ids, list(image_ids)))
    if iou_type == "keypoints":
        sigmas = list(kpt_oks_sigmas) or COCO_SIGMAS
        tables = _keypoint_tables(truth, detections, chosen, len(sigmas))
    else:
        tables = _tables(truth, detections, chosen, with_masks=iou_type == "segm")
    evaluation = COCOeval(*tables, iou_type)
    params = evaluation.params
    params.max_dets = limits
    if areas:
        params.area_rng = [list(params.area_rng[0]), *map(list, areas.values())]
        params.area_rng_lbl = [params.area_rng_lbl[0], *areas]
    if iou_type == "keypoints":
        params.kpt_oks_sigmas = sigmas
    if _pool_owner is None:
        _try_threads(os.cpu_count() or 1)
    _pool_owner = os.getpid()
    evaluation.evaluate()
    evaluation.accumulate()
    assert evaluation.eval is not None
    return Evaluation(
        iou_type,
        evaluation.eval["precision"],
        evaluation.eval["recall"],
        np.array(params.iou_thrs),
        np.array(params.rec_thrs),
        list(params.area_rng_lbl),
        limits,
        truth.category_ids,
        list(truth.class_names),
    )


_pool_owner: int | None = None  # the process whose threads hotcoco has started: a fork has none and would wait for ever


def _try_threads(number: int) -> None:
    """Start so many at a time: hotcoco, which cannot, ends with a page of Rust in place of Python's RuntimeError."""
    ready = threading.Event()
    threads = [threading.Thread(target=ready.wait) for _ in range(number)]
    try:
        for thread in threads:
            thread.start()
    finally:
        ready.set()
    for thread in threads:
        thread.join()


def _in_a_new_process(truth: Dataset, detections: Detections, iou_type: str, *keywords: Any) -> Evaluation:
    """:func:`evaluate` for a fork of a process that has evaluated already."""
    names = ("max_detections", "areas", "image_ids", "kpt_oks_sigmas")
    call = (truth, detections, iou_type), dict(zip(names, keywords, strict=True))
    code = (
        "import pickle, sys; from resnext_det.annotations.evaluation import _answer; "
        "pickle.dump(_answer(*pickle.load(sys.stdin.buffer)), sys.stdout.buffer)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=pickle.dumps(call), stdout=subprocess.PIPE, env=environment, check=True)
    answer = pickle.loads(done.stdout)
    if isinstance(answer, UserError):
        raise answer
    return answer


def _answer(given: tuple, named: dict[str, Any]) -> Evaluation | UserError:
    """:func:`evaluate`'s, with bad input as a value: an error of its process would be a traceback in this one."""
    try:
        return evaluate(*given, **named)
    except UserError as error:
        return error


def check_detections(truth: Dataset, detections: Detections, iou_type: str = "bbox") -> None:
    """Refuse detections that belong to another data set or hold NaN.

    Raises:
        UserError: naming the foreign image ids or category ids, or the first detection with NaN.
    """
    foreign = np.unique(detections.image_ids[positions(detections.image_ids, truth.image_ids) < 0])
    if foreign.size:
        raise UserError(
            f"{detections.source}: image_id {listed(foreign.tolist())} not among the images of {truth.source}; "
            "evaluate on the set that was predicted"
        )
    foreign = np.unique(detections.category_ids[positions(detections.category_ids, truth.category_ids) < 0])
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
    if iou_type == "bbox" and len(detections) and np.isnan(detections.boxes).all():  # the file has no boxes
        if detections.masks is None:
            raise UserError(f"{detections.source}: no bbox in the detections; evaluate keypoints, or add the boxes")
        values = None
    bad = ~np.isfinite(detections.scores)
    if values is not None:
        bad |= ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise UserError(
            f"{detections.source}: {int(bad.sum())} detections hold NaN or infinity, the first is number "
            f"{int(bad.argmax())} of image {int(detections.image_ids[bad.argmax()])}; has the model diverged?"
        )


def _frame(truth: Dataset, chosen: np.ndarray) -> tuple[list[dict], list[dict]]:
    """The images at ``chosen`` and all classes as hotcoco wants them, numbered from 1: whatever the ids, their order
    is pycocotools'."""
    sizes = zip(truth.heights[chosen].tolist(), truth.widths[chosen].tolist(), strict=True)
    images = [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes, start=1)]
    return images, [{"id": k, "name": str(k)} for k in range(1, len(truth.class_names) + 1)]


def _of_images(truth: Dataset, detections: Detections, chosen: np.ndarray) -> tuple[np.ndarray, ...]:
    """Objects and detections of the images at ``chosen``: their places, and the number of their image from 1."""
    number = np.zeros(len(truth.image_ids) + 1, dtype=np.int64)
    number[chosen] = np.arange(1, len(chosen) + 1)
    of_object = number[truth.image]
    of_detection = number[positions(detections.image_ids, truth.image_ids)]
    objects, found = np.flatnonzero(of_object), np.flatnonzero(of_detection)
    return objects, of_object[objects], found, of_detection[found]


def _tables(truth: Dataset, detections: Detections, chosen: np.ndarray, *, with_masks: bool) -> tuple[COCO, COCO]:
    """Ground truth and detections of the images at ``chosen``, for boxes or masks."""
    objects, of_object, here, of_detection = _of_images(truth, detections, chosen)
    shapes = masks = None
    if with_masks:
        shapes = [_needed(truth, i, truth.segmentation(i), "segmentation") for i in objects]
        masks = [detections.segmentation(i) for i in here.tolist()]
        _check_sized(truth, truth.source, chosen[of_object - 1], shapes)
        _check_sized(truth, detections.source, chosen[of_detection - 1], masks)
    table = COCO.from_arrays(
        *_frame(truth, chosen),
        of_object,
        truth.category[objects] + 1,
        truth.boxes[objects],
        area=truth.areas[objects],
        iscrowd=truth.iscrowd[objects],
        segmentation=shapes,
    )
    columns = np.column_stack([
        of_detection,
        np.zeros((len(here), 4)) if with_masks else _boxes(detections, here),
        detections.scores[here],
        positions(detections.category_ids[here], truth.category_ids) + 1,
    ])  # fmt: skip
    if masks is None:
        return table, table.load_res(columns)
    found = table.load_res(columns, segmentation=masks)
    if masks:  # small, medium and large go by the mask, not by the box around it
        _check_sizes(truth, detections, here)
        areas = [_area(mask, truth, i) for mask, i in zip(masks, chosen[of_detection - 1].tolist(), strict=True)]
        found.update_anns(ids=np.arange(1, len(masks) + 1), area=np.array(areas, dtype=float))
    return table, found


def _check_sized(truth: Dataset, source: str, images: np.ndarray, masks: Sequence[list | dict]) -> None:
    """Refuse polygons of an image whose size is not known: ``images`` holds the place of each mask's."""
    unsized = (truth.heights == 0) | (truth.widths == 0)
    for i in np.flatnonzero(unsized[images]).tolist():
        if isinstance(masks[i], list):
            raise UserError(
                f"{truth.source}: image {truth.image_ids[images[i]]} has no width or height, which its polygons in "
                f"{source} need; add them"
            )


def _area(mask: list | dict, truth: Dataset, image: int) -> float:
    if isinstance(mask, list):
        size = int(truth.heights[image]), int(truth.widths[image])
        mask = mask_tools.merge(mask_tools.frPyObjects(mask, *size))
    return float(mask_tools.area(mask))


def _boxes(detections: Detections, here: np.ndarray) -> np.ndarray:
    """Their boxes; of masks without boxes, the boxes around the masks."""
    boxes = detections.boxes[here].astype(float)
    if detections.masks is not None and not np.isfinite(boxes).all():
        for row, i in enumerate(here.tolist()):
            mask = detections.segmentation(i)
            if isinstance(mask, list):
                points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
                low, high = points.min(axis=0), points.max(axis=0)
                boxes[row] = [*low, *(high - low)]
            else:
                boxes[row] = mask_tools.toBbox(mask)
    return boxes


def _check_sizes(truth: Dataset, detections: Detections, here: np.ndarray) -> None:
    """Refuse masks of another size than their image's, which would never overlap."""
    assert detections.mask_sizes is not None
    image = positions(detections.image_ids[here], truth.image_ids)
    real = np.stack([truth.heights[image], truth.widths[image]], axis=1)
    given = detections.mask_sizes[here]
    wrong = np.flatnonzero((given > 0).all(axis=1) & (real > 0).all(axis=1) & (given != real).any(axis=1))
    if len(wrong):
        height, width = given[wrong[0]]
        raise UserError(
            f"{detections.source}: {len(wrong)} masks are not of the size of their image, the first is "
            f"{width}x{height} for image {detections.image_ids[here[wrong[0]]]} of "
            f"{real[wrong[0]][1]}x{real[wrong[0]][0]}; encode masks of the whole image"
        )


def _keypoint_tables(truth: Dataset, detections: Detections, chosen: np.ndarray, number: int) -> tuple[COCO, COCO]:
    """The like for keypoints, which hotcoco reads from records only; ``number`` is how many an object has."""
    rows, of_object, here, of_detection = _of_images(truth, detections, chosen)
    assert detections.keypoints is not None
    objects: list[dict] = []
    for i, image in zip(rows.tolist(), of_object.tolist(), strict=True):
        points = _needed(truth, i, truth.points(i), "keypoints")
        visible = int(truth.num_keypoints[i]) if truth.num_keypoints is not None else -1
        objects.append({
            "id": len(objects) + 1,
            "image_id": image,
            "category_id": int(truth.category[i]) + 1,
            "bbox": truth.boxes[i].tolist(),
            "area": float(truth.areas[i]),
            "iscrowd": int(truth.iscrowd[i]),
            "keypoints": points,
            "num_keypoints": visible if visible >= 0 else sum(v > 0 for v in points[2::3]),
        })  # fmt: skip
    found = []
    classes = positions(detections.category_ids[here], truth.category_ids) + 1
    for i, image, category in zip(here.tolist(), of_detection.tolist(), classes.tolist(), strict=True):
        found.append({
            "image_id": image,
            "category_id": category,
            "keypoints": detections.keypoints[i].tolist(),
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


def _needed(truth: Dataset, row: int, value: Any, key: str) -> Any:
    if not value:
        raise UserError(
            f"{truth.source}: annotation {truth.annotation_ids[row]} has no {key}; without it only bbox can be "
            "evaluated"
        )
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
        What :meth:`Evaluation.results` describes, 0 to 100. Without ground truth it is NaN and the reason is logged.
        With ground truth and no detections it is 0.

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
