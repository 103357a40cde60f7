"""The rules of ``annotations``: one table of what a record must be, one of what is reported of all of them together.

The columns hold the fixed records: a box outside its image is clipped there, a missing area filled in. Beside them
stand boxes and areas as written, which an evaluation counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...errors import counted
from .. import columns, masks
from ..columns import MISSING
from ..dataset import positions
from ..records import Records
from .findings import Findings, shorten, some
from .options import Options
from .tables import Categories, Images, annotation_ids

OUTSIDE = 1.0
"""Pixels that a box may stick out without a word: rounding in annotation tools, and in COCO itself."""

_PART = 1 << 20  # rows

SAME_AREAS = 10
"""So many objects of one area, whose boxes differ, are no accident."""


@dataclass
class Annotations:
    """One entry per record of ``annotations``.

    Attributes:
        ids: (N,) an id of its own for each.
        image, category: (N,) positions in the tables, -1 unknown.
        boxes, areas: (N, 4) and (N,) as fixed.
        iscrowd: (N,) 0 or 1.
        keep: (N,) usable in training.
        given, given_areas: boxes and areas as written.
        known: (N,) usable as written.
        records: as they stand in the file.
    """

    ids: np.ndarray
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    iscrowd: np.ndarray
    keep: np.ndarray
    given: np.ndarray
    given_areas: np.ndarray
    known: np.ndarray
    records: Records


class Objects:
    """The records as columns, and where each rule is broken. ``truth``: they are to be counted as they are written."""

    def __init__(self, rows: Records, images: Images, categories: Categories, options: Options, truth: bool) -> None:
        self.rows, self.images, self.categories, self.options, self.truth = rows, images, categories, options, truth
        ids = rows.table["image_id"], rows.table["category_id"]
        self.image_id, self.category_id = ids if truth else (column.narrow() for column in ids)
        self.image = positions(self.image_id.values, images.ids)
        self.category = positions(self.category_id.values, columns.integers(categories.ids, wide=True).values)
        self.image[self.image_id.bad] = self.category[self.category_id.bad] = -1
        self._read_boxes()
        self._read_areas()

    def _read_boxes(self) -> None:
        column = self.rows.table["bbox"]
        self.box_bad, self.box_cast = column.bad, column.cast
        self.finite = np.ones(len(self.rows), dtype=bool)
        self.finite[column.bad] = False
        self.given = column.values
        self.given[~self.finite] = 0
        sizes = [np.where(self.image >= 0, side[self.image] if len(side) else 0, 0)
                 for side in (self.images.widths, self.images.heights)]  # fmt: skip
        self.widths, self.heights = sizes
        self.sized = self.finite & (self.widths > 0) & (self.heights > 0)
        self.boxes = self.given.copy()
        self.corners = is_xyxy(self.boxes, self.widths, self.heights, self.sized)
        self.outside = np.zeros(len(self.rows), dtype=bool)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.corners:
                self.boxes[self.sized, 2:] -= self.boxes[self.sized, :2]
            self.empty = self.finite & ((self.boxes[:, 2] <= 0) | (self.boxes[:, 3] <= 0))
            self.before = self.boxes[:, 2] * self.boxes[:, 3]
            inside = self.sized & ~self.empty
            for part in _parts(len(self.rows)):
                self.boxes[part], self.outside[part] = _clip(
                    self.boxes[part], self.widths[part], self.heights[part], inside[part]
                )
        self.gone = self.outside & ((self.boxes[:, 2] <= 0) | (self.boxes[:, 3] <= 0))
        self.known = (self.image >= 0) & (self.category >= 0) & (self.finite | self.box_in_mask)
        self.keep = self.finite & ~self.empty & ~self.gone & (self.image >= 0) & (self.category >= 0)

    def _read_areas(self) -> None:
        column = self.rows.table["area"]
        areas, self.area_absent = column.values, column.missing
        self.area_wrong = ~self.area_absent & ~(areas >= (-np.inf if self.truth else 0))
        again = self.area_absent | self.area_wrong
        with np.errstate(over="ignore", invalid="ignore"):
            self.given_areas = np.where(again, self.given[:, 2] * self.given[:, 3], areas)
            clipped = again | (self.outside & (areas == self.before))
            self.areas = np.where(clipped, self.boxes[:, 2] * self.boxes[:, 3], areas)

    @cached_property
    def iscrowd(self) -> columns.Column:
        given = self.rows.table["iscrowd"]
        wrong = (given.values != 0) & (given.values != 1)
        wrong[given.bad] = True
        return columns.Column(np.where(wrong, 0, given.values), np.flatnonzero(wrong).tolist(), absent=given.absent)

    def _faults(self, key: str, fault: Callable[[int, Any], str | None]) -> dict[int, str]:
        """{row: what is wrong with ``key``}, of rows where there is something."""
        rows = np.flatnonzero(self.rows.table[key].values)
        whys = (
            (row, fault(row, record[key])) for row, record in zip(rows.tolist(), self.rows.those(rows), strict=True)
        )
        return {row: why for row, why in whys if why}

    @cached_property
    def mask_faults(self) -> dict[int, str]:
        """{row: why its segmentation is none}; nothing (null, [], "") is no segmentation and no fault."""

        def fault(row: int, value: Any) -> str | None:
            size = (int(self.heights[row]), int(self.widths[row]))
            return masks.fault(value, size if all(size) else None)

        return self._faults("segmentation", fault)

    def has_mask(self, row: int) -> bool:
        """Whether record ``row`` has a usable segmentation."""
        return bool(self.rows.table["segmentation"].values[row]) and row not in self.mask_faults

    @cached_property
    def box_in_mask(self) -> np.ndarray:
        """Rows without a box that count by their mask, in an evaluation of masks."""
        found = np.zeros(len(self.rows), dtype=bool)
        if self.truth and self.options.masks:
            found[[row for row in self.box_bad if _absent_box(self, row) and self.has_mask(row)]] = True
        return found

    @cached_property
    def keypoint_faults(self) -> dict[int, str]:
        def fault(row: int, value: Any) -> str | None:
            usable = isinstance(value, list) and len(value) % 3 == 0 and all(map(masks.finite_number, value))
            return None if usable else "is not a list of finite numbers x, y, visibility"

        return self._faults("keypoints", fault)

    def without(self, key: str) -> np.ndarray:
        """Usable objects without ``key``, though the run needs it; crowds are not counted."""
        return np.flatnonzero(self.keep & (self.iscrowd.values == 0) & ~self.rows.table[key].values)

    def fractions(self) -> bool:
        """Whether all boxes lie between 0 and 1, as YOLO writes them."""
        boxes = self.given[self.finite]
        return bool(len(boxes) and (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > 0).any() and (
            (self.widths[self.finite] != 1) & (self.heights[self.finite] != 1)).all())  # fmt: skip

    def one_area(self) -> bool:
        """Whether all say one area though their boxes differ."""
        said = self.known & ~self.area_absent & ~self.area_wrong
        areas, real = self.given_areas[said], self.before[said]
        return bool(len(areas) >= SAME_AREAS and (areas == areas[0]).all() and real.max() > 2 * max(real.min(), 1e-9))

    def crowded(self, limit: int, *, by_class: bool) -> tuple[int, int]:
        """How many images hold more than ``limit`` objects (of one class), and the most in one."""
        rows = np.flatnonzero(self.known & (self.iscrowd.values == 0))
        number = np.bincount(self.image[rows], minlength=1)
        if by_class:  # of images with few objects no class has many
            rows = rows[number[self.image[rows]] > limit]
            classes = len(self.categories.ids)
            keys, number = np.unique(self.image[rows] * classes + self.category[rows], return_counts=True)
            return len(np.unique(keys[number > limit] // classes)), int(number.max(initial=0))
        return int((number > limit).sum()), int(number.max())

    def size(self, row: int) -> str:
        """Width and height of the image of a record, for a message."""
        return f"{self.widths[row]}x{self.heights[row]}"

    def where(self, row: int, field: str) -> dict:
        """Field and id of a record, for a finding."""
        return {
            "field": f"annotations[{row}].{field}",
            "id": self.rows[row].get("id"),
        }

    def columns(self, ids: np.ndarray) -> Annotations:
        """The outcome."""
        return Annotations(
            ids, self.image, self.category, self.boxes, self.areas, self.iscrowd.values, self.keep, self.given,
            self.given_areas, self.known, self.rows,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one record must be.

    Attributes:
        severity: of a finding; ``truth`` where records are counted as written, "" where it does not matter then.
        code, field, fix: of a finding.
        rows: the records that break it.
        message: what is wrong with one of them.
    """

    code: str
    field: str
    rows: Callable[[Objects], Iterable[int]]
    message: Callable[[Objects, int], str]
    fix: str
    severity: str = "error"
    truth: str = "error"


@dataclass(frozen=True, kw_only=True)
class Remark:
    """What is reported once of all records: ``find`` gives (how many they are, what is wrong), or None."""

    code: str
    field: str
    find: Callable[[Objects], tuple[int, str] | None]
    fix: str
    severity: str | Callable[[Objects], str] = "warning"
    truth: str = ""


def _raw(objects: Objects, row: int, key: str) -> str:
    value = objects.rows[row].get(key, MISSING)
    return "missing" if value is MISSING else shorten(value)


def _id_rules(key: str, table: str, fix: str) -> list[Rule]:
    def column(objects: Objects) -> columns.Column:
        return objects.image_id if key == "image_id" else objects.category_id

    def unknown(objects: Objects) -> Iterable[int]:
        found = objects.image if key == "image_id" else objects.category
        bad = np.zeros(len(found), dtype=bool)
        bad[objects.image_id.bad] = bad[objects.category_id.bad] = True
        return np.flatnonzero((found < 0) & ~bad)

    def message(objects: Objects, row: int) -> str:
        known = "" if key == "image_id" else f" ({some(objects.categories.ids, 5)})"
        return f"{column(objects).values[row]} is not among the {table}{known}"

    name = key.replace("_", "-")
    return [
        Rule(
            code=f"annotation-{name}-not-an-integer",
            field=key,
            rows=lambda objects: column(objects).bad,
            message=lambda objects, row: (
                "is missing" if key not in objects.rows[row] else f"is {_raw(objects, row, key)}, not an integer"
            ),
            fix="write an integer",
        ),
        Rule(code=f"unknown-{name[:-3]}", field=key, rows=unknown, message=message, fix=fix),
    ]


def _cast(key: str) -> Remark:
    def find(objects: Objects) -> tuple[int, str] | None:
        cast = (objects.image_id if key == "image_id" else objects.category_id).cast
        first = _raw(objects, cast[0], key) if cast else ""
        return (
            (len(cast), f"{len(cast)} are not written as integers, the first {first}; read as integers")
            if cast
            else None
        )

    code = f"annotation-{key.replace('_', '-')}-cast"
    return Remark(code=code, field=key, find=find, fix="write integers, or --fix")


def _absent_box(objects: Objects, row: int) -> bool:
    value = objects.rows[row].get("bbox")
    return value is None or value == []


RULES = [
    *_id_rules("image_id", "images", "add the image or remove the annotation"),
    *_id_rules("category_id", "categories", "add the category or correct the id"),
    Rule(
        code="bbox-missing",
        field="bbox",
        rows=lambda o: [row for row in o.box_bad if _absent_box(o, row) and not o.box_in_mask[row]],
        message=lambda o, row: "is missing",
        fix="write [x, y, width, height] in pixels",
    ),
    Rule(
        code="bbox-not-numbers",
        field="bbox",
        rows=lambda o: [row for row in o.box_bad if not _absent_box(o, row)],
        message=lambda o, row: f"{_raw(o, row, 'bbox')} is not four finite numbers",
        fix="write [x, y, width, height] in pixels",
    ),
    Rule(
        code="bbox-not-numbers",
        field="bbox",
        rows=lambda o: [row for row in o.box_cast if o.finite[row]],
        message=lambda o, row: f"{_raw(o, row, 'bbox')} holds texts",
        fix="write numbers, or --fix",
    ),
    Rule(
        code="bbox-empty",
        field="bbox",
        severity="warning",
        truth="",
        rows=lambda o: np.flatnonzero(o.empty),
        message=lambda o, row: f"{_raw(o, row, 'bbox')} has no area; the annotation is left out",
        fix="correct or remove it",
    ),
    Rule(
        code="bbox-clipped",
        field="bbox",
        severity="warning",
        truth="",
        rows=lambda o: np.flatnonzero(o.outside & ~o.gone),
        message=lambda o, row: f"{_raw(o, row, 'bbox')} leaves its image of {o.size(row)}; it is clipped",
        fix="correct the box",
    ),
    Rule(
        code="bbox-outside",
        field="bbox",
        severity="warning",
        truth="",
        rows=lambda o: np.flatnonzero(o.gone),
        message=lambda o, row: (
            f"{_raw(o, row, 'bbox')} lies outside its image of {o.size(row)}; the annotation is left out"
        ),
        fix="correct the box",
    ),
    Rule(
        code="iscrowd",
        field="iscrowd",
        rows=lambda o: o.iscrowd.bad,
        message=lambda o, row: f"is {_raw(o, row, 'iscrowd')}",
        fix="write 0 or 1",
    ),
    Rule(
        code="ignore",
        field="ignore",
        truth="",
        rows=lambda o: np.flatnonzero(o.rows.table["ignore"].values),
        message=lambda o, row: f"is {_raw(o, row, 'ignore')}, which detectron2 does not support",
        fix='mark it "iscrowd": 1 or remove it',
    ),
]  # fmt: skip

MASK_RULES = {
    False: Rule(
        code="segmentation",
        field="segmentation",
        severity="warning",
        truth="",
        rows=lambda o: o.mask_faults,
        message=lambda o, row: f"{_raw(o, row, 'segmentation')} {o.mask_faults[row]}; the box is used without it",
        fix="correct or remove it",
    ),
    True: Rule(
        code="segmentation",
        field="segmentation",
        rows=lambda o: o.mask_faults,
        message=lambda o, row: f"{_raw(o, row, 'segmentation')} {o.mask_faults[row]}",
        fix="correct it; boxes alone need no masks (MODEL.MASK_ON False, --iou-type bbox)",
    ),
}
"""By whether the run needs masks."""

NEEDED = [
    Rule(
        code="mask-missing",
        field="segmentation",
        truth="",
        rows=lambda o: o.without("segmentation") if o.options.masks else [],
        message=lambda o, row: "is missing, and the model learns masks (MODEL.MASK_ON True)",
        fix="add it, or set MODEL.MASK_ON False",
    ),
    Rule(
        code="keypoints-missing",
        field="keypoints",
        truth="",
        rows=lambda o: o.without("keypoints") if o.options.keypoints else [],
        message=lambda o, row: "is missing, and the model learns keypoints (MODEL.KEYPOINT_ON True)",
        fix="add it, or set MODEL.KEYPOINT_ON False",
    ),
    Rule(
        code="keypoints",
        field="keypoints",
        rows=lambda o: o.keypoint_faults if o.options.keypoints or o.truth else [],
        message=lambda o, row: f"{_raw(o, row, 'keypoints')} {o.keypoint_faults[row]}",
        fix="correct or remove it",
    ),
]


def _report(mask: np.ndarray, message: str) -> tuple[int, str] | None:
    number = int(mask.sum())
    return (number, f"{number} {message}") if number else None


def _corners(objects: Objects) -> tuple[int, str] | None:
    if not objects.corners:
        return None
    first = objects.rows[int(np.flatnonzero(objects.sized)[0])]["bbox"]
    return (
        int(objects.sized.sum()),
        f"{shorten(first)} and the others look like corners x1, y1, x2, y2: as x, y, width, height many leave their "
        "images",
    )


def _fractions(objects: Objects) -> tuple[int, str] | None:
    if not objects.fractions():
        return None
    first = objects.rows[int(np.flatnonzero(objects.finite)[0])]["bbox"]
    return int(objects.finite.sum()), f"{shorten(first)} and all others lie between 0 and 1: they look like fractions"


def _many(objects: Objects) -> tuple[int, str] | None:
    limit = objects.options.max_detections
    images, most = objects.crowded(limit, by_class=True)
    return (
        (images, f"more than {limit} objects of one class stand in {counted(images, 'image')}, {most} at most, and an "
         f"evaluation counts {limit} detections of a class in an image: AP stays low")
        if images else None
    )  # fmt: skip


def _too_many(objects: Objects) -> tuple[int, str] | None:
    limit = objects.options.detections_per_image
    images, most = (0, 0) if limit is None else objects.crowded(limit, by_class=False)
    return (
        (images, f"more than {limit} objects stand in {counted(images, 'image')}, {most} at most, and the model gives "
         f"{limit} detections")
        if images else None
    )  # fmt: skip


REMARKS = [
    _cast("image_id"),
    _cast("category_id"),
    Remark(
        code="bbox-xyxy",
        field="bbox",
        severity="error",
        truth="warning",
        find=_corners,
        fix="write [x, y, width, height], or --fix",
    ),
    Remark(
        code="bbox-fractions",
        field="bbox",
        severity="error",
        truth="warning",
        find=_fractions,
        fix="multiply with the image's width and height; COCO's boxes are in pixels",
    ),
    Remark(
        code="bbox-sub-pixel",
        field="bbox",
        severity="note",
        find=lambda o: _report(
            o.keep & ((o.boxes[:, 2] < 1) | (o.boxes[:, 3] < 1)),
            "are thinner than a pixel; training leaves out those that resizing keeps below one",
        ),
        fix="nothing to do",
    ),
    Remark(
        code="iscrowd-missing",
        field="iscrowd",
        severity="note",
        find=lambda o: _report(o.iscrowd.missing, "are missing or null; read as 0"),
        fix="nothing to do",
    ),
    Remark(
        code="all-crowds",
        field="iscrowd",
        severity=lambda o: "error" if o.options.for_training else "warning",
        truth="warning",
        find=lambda o: (
            (len(o.rows), "is 1 in every annotation: crowds are neither trained on nor counted")
            if len(o.rows) and (o.iscrowd.values == 1).all() else None
        ),
        fix="write 0 for single objects (CVAT writes 1 for masks)",
    ),
    Remark(
        code="area-missing",
        field="area",
        severity="note",
        find=lambda o: _report(o.area_absent, "are missing; width times height is used"),
        fix="nothing to do",
    ),
    Remark(
        code="area-wrong",
        field="area",
        truth="warning",
        find=lambda o: _report(o.area_wrong, "are not finite numbers of at least 0; width times height is used"),
        fix="write the area in pixels, or leave it out",
    ),
    Remark(
        code="area-same",
        field="area",
        truth="warning",
        find=lambda o: (
            (len(o.rows), f"is {o.given_areas[o.known][0]:g} in every annotation, and the boxes differ: AP of small, "
             "medium and large objects means nothing")
            if o.one_area() else None
        ),
        fix="leave the areas out, or write each object's own",
    ),
    Remark(
        code="many-objects",
        field="image_id",
        truth="warning",
        find=_many,
        fix="raise the limit: --max-detections, in training TEST.MAX_DETECTIONS",
    ),
    Remark(
        code="more-objects-than-detections",
        field="image_id",
        find=_too_many,
        fix="raise TEST.DETECTIONS_PER_IMAGE",
    ),
]  # fmt: skip


def check_annotations(
    rows: Records, images: Images, categories: Categories, findings: Findings, options: Options, *, truth: bool
) -> Annotations:
    """Every rule on every annotation; ``images`` must know their sizes by now as far as they can be known."""
    objects = Objects(rows, images, categories, options, truth)
    ids = annotation_ids(rows, findings, quiet=truth)
    needed = NEEDED if truth or options.for_training else [_milder(rule) for rule in NEEDED]
    for rule in [*RULES, *needed, MASK_RULES[options.masks and (truth or options.for_training)]]:
        severity = rule.truth if truth else rule.severity
        if severity:

            def word(row: int, rule: Rule = rule) -> dict:
                return {"message": rule.message(objects, row), "fix": rule.fix, **objects.where(row, rule.field)}

            findings.add_each(severity, rule.code, rule.rows(objects), word)
    for remark in REMARKS:
        severity = remark.severity(objects) if callable(remark.severity) else remark.severity
        severity = remark.truth if truth else severity
        found = remark.find(objects) if severity else None
        if found:
            count, message = found
            findings.add(severity, remark.code, message, remark.fix, field=f"annotations[].{remark.field}", count=count)
    return objects.columns(ids)


def _milder(rule: Rule) -> Rule:
    """A set to evaluate on: what lacks a mask takes the AP of masks away, and no other number."""
    fields: dict[str, Any] = {**vars(rule), "severity": "warning"}
    return Rule(**fields)


def is_xyxy(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray, rows: np.ndarray) -> bool:
    """Whether the boxes of ``rows`` make sense as corners and not as x, y, width, height.

    Read as x, y, width, height about three quarters of true corners leave the image (all whose center is not in its
    upper left quarter), while of true x, y, width, height hardly any does, and few have w > x and h > y.
    """
    total, fit, left = int(rows.sum()), 0, 0
    for part in _parts(len(boxes)):
        with np.errstate(over="ignore", invalid="ignore"):
            (x, y, w, h), width, height = boxes[part].T, widths[part], heights[part]
            slack = np.maximum(2.0, 0.02 * np.maximum(width, height))
            corners = (w > x) & (h > y) & (x >= -OUTSIDE) & (y >= -OUTSIDE) & (w <= width + slack)
            fit += int((corners & (h <= height + slack) & rows[part]).sum())
            left += int((((x + w > width + slack) | (y + h > height + slack)) & rows[part]).sum())
    return total > 0 and fit >= 0.98 * total and left >= 0.25 * total


def _parts(number: int) -> list[slice]:
    """Rows some at a time, so that what is computed of them on the way takes little memory."""
    return [slice(first, first + _PART) for first in range(0, number, _PART)]


def _clip(
    boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clips the boxes of ``rows`` that stick out by more than OUTSIDE; returns boxes and the mask of those."""
    x1, y1 = boxes[:, 0], boxes[:, 1]
    x2, y2 = x1 + boxes[:, 2], y1 + boxes[:, 3]
    excess = np.maximum.reduce([-x1, -y1, x2 - widths, y2 - heights])
    outside = rows & ~(excess <= OUTSIDE)
    left, top = x1.clip(0, widths), y1.clip(0, heights)
    clipped = np.stack([left, top, x2.clip(0, widths) - left, y2.clip(0, heights) - top], axis=1)
    return np.where(outside[:, None], clipped, boxes), outside
