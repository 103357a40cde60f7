"""What a COCO-format document must be, and what becomes of records that are not.

The tables hold the fixed records: a box outside its image is clipped there, a missing area filled in. Whether one
may train on them is the findings' severity; errors stop, warnings and notes do not.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from . import columns
from .columns import MISSING
from .findings import Findings, shorten, some

OUTSIDE = 1.0
"""Pixels that a box may stick out without a word: rounding in annotation tools, and in COCO itself."""


@dataclass
class Categories:
    """``ids`` in the order of the contiguous indices 0, 1, ...; ``rows`` are their records in the document."""

    ids: list[int]
    names: list[str]
    rows: list[int]


@dataclass
class Images:
    """One entry per usable record of ``images``; ``widths`` and ``heights`` are 0 where unknown."""

    rows: np.ndarray
    ids: np.ndarray
    file_names: list[str]
    widths: np.ndarray
    heights: np.ndarray
    keep: np.ndarray


@dataclass
class Annotations:
    """One entry per record of ``annotations``: ``image`` and ``category`` are indices into the tables, -1 unknown."""

    ids: np.ndarray
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    iscrowd: np.ndarray
    keep: np.ndarray


def records(document: dict, key: str, findings: Findings) -> list[dict] | None:
    """The list ``key`` of the document when it is a list of objects, else None and an error."""
    value = document[key]
    if not isinstance(value, list):
        findings.add("error", f"{key}-not-a-list", f"is {shorten(value)}", "write a list of objects", field=key)
        return None
    for row, record in enumerate(value):
        if type(record) is not dict:
            findings.add(
                "error", "not-an-object", f"is {shorten(record)}", "write an object {...}", field=f"{key}[{row}]"
            )
            return None
    return value


def _integers(rows: list[dict], key: str, field: str, table: str, findings: Findings, ids: list | None = None):
    """The integer field ``field`` of all rows, with its findings; returns the column."""
    raw = columns.get(rows, field)
    column = columns.integers(raw)

    def word(row: int) -> dict:
        return {"field": f"{table}[{row}].{field}", "id": None if ids is None else _plain(ids[row])}

    findings.add_each(
        "error",
        f"{key}-not-an-integer",
        column.bad,
        lambda row: {
            "message": "is missing" if raw[row] is MISSING else f"is {shorten(raw[row])}, not an integer",
            "fix": "write an integer",
            **word(row),
        },
    )
    if column.cast:
        findings.add(
            "warning",
            f"{key}-cast",
            f"{len(column.cast)} are not written as integers, the first "
            f"{shorten(raw[column.cast[0]])}; read as integers",
            "write integers, or --fix",
            field=f"{table}[].{field}",
            count=len(column.cast),
        )
    return column


def _plain(value: object) -> object:
    return None if value is MISSING else value


def check_categories(rows: list[dict], used: set[int], findings: Findings, drop_unused_root: bool) -> Categories | None:
    """``used``: category ids that annotations name. None where the errors leave nothing to map."""
    if not rows:
        findings.add("error", "no-categories", "is empty", "list every class with id and name", field="categories")
        return None
    column = _integers(rows, "category-id", "id", "categories", findings)
    ids = column.values.tolist()
    twice = [value for value, n in Counter(ids).items() if n > 1] if not column.bad else []
    if twice:
        findings.add(
            "error", "duplicate-category-id", f"used more than once: {some(twice)}", "give every class its own id",
            field="categories[].id", count=len(twice),
        )  # fmt: skip
    names = columns.get(rows, "name")
    nameless = [row for row, name in enumerate(names) if type(name) is not str or not name.strip()]
    findings.add_each(
        "error",
        "category-name",
        nameless,
        lambda row: {
            "message": "has no name",
            "fix": "give the class a name",
            "field": f"categories[{row}].name",
            "id": ids[row],
        },
    )
    if column.bad or twice or nameless:
        return None
    same = [name for name, n in Counter(names).items() if n > 1]
    if same:
        findings.add(
            "warning", "duplicate-category-name", f"used by several classes: {some(same)}", "merge or rename them",
            field="categories[].name", count=len(same),
        )  # fmt: skip
    order = sorted(range(len(ids)), key=ids.__getitem__)
    parents = {row: _plain(rows[row].get("supercategory")) for row in order}
    roots = [
        row
        for row in order
        if len(rows) > 1
        and ids[row] not in used
        and all(parent == names[row] for other, parent in parents.items() if other != row)
    ]
    if roots:
        row = roots[0]
        does = "it is left out" if drop_unused_root else "it stays a class"
        findings.add(
            "warning",
            "unused-root-category",
            f"{names[row]!r} is the supercategory of all others and has no annotations; {does}",
            "--drop-unused-root (in training DATASETS.DROP_UNUSED_ROOT True) leaves it out",
            field=f"categories[{row}]",
            id=ids[row],
        )
        if drop_unused_root:
            order.remove(row)
    result = Categories([ids[row] for row in order], [names[row] for row in order], order)
    if result.ids != list(range(1, len(result.ids) + 1)):
        findings.add(
            "note",
            "category-ids-mapped",
            f"{len(order)} ids from {result.ids[0]} to {result.ids[-1]} are mapped to 0 to {len(order) - 1}",
            "nothing to do: results are written with the ids of the file",
            field="categories[].id",
        )
    return result


def check_images(rows: list[dict], findings: Findings) -> Images:
    """Ids, file names and the sizes that the document gives."""
    if not rows:
        findings.add("error", "no-images", "is empty", "list the images", field="images")
    column = _integers(rows, "image-id", "id", "images", findings)
    bad = np.zeros(len(rows), dtype=bool)
    bad[column.bad] = True
    good = np.flatnonzero(~bad)
    unique, first, counts = np.unique(column.values[good], return_index=True, return_counts=True)
    twice = unique[counts > 1]
    if len(twice):
        findings.add(
            "error", "duplicate-image-id", f"used more than once: {some(twice.tolist())}",
            "give every image its own id",
            field="images[].id", count=len(twice),
        )  # fmt: skip
    kept = np.zeros(len(rows), dtype=bool)
    kept[good[first]] = True

    names = columns.get(rows, "file_name")
    nameless = [row for row, name in enumerate(names) if type(name) is not str or not name or "\0" in name]
    findings.add_each(
        "error",
        "file-name",
        nameless,
        lambda row: {
            "message": f"is {'missing' if names[row] is MISSING else shorten(names[row])}",
            "fix": "write the image's path below the image folder",
            "field": f"images[{row}].file_name",
            "id": _plain(rows[row].get("id", MISSING)),
        },
    )
    kept[nameless] = False
    usable = np.flatnonzero(kept)
    same = [name for name, n in Counter(names[row] for row in usable).items() if n > 1]
    if same:
        findings.add(
            "warning", "duplicate-file-name", f"images listed more than once: {some(same)}", "list each image once",
            field="images[].file_name", count=len(same),
        )  # fmt: skip
    sizes = {}
    for key in ("width", "height"):
        raw = columns.get(rows, key, None)
        size = columns.integers([0 if value is None else value for value in raw])
        wrong = sorted(
            set(size.bad) | {row for row in np.flatnonzero(size.values <= 0).tolist() if raw[row] is not None}
        )
        findings.add_each(
            "error",
            "image-size-not-positive",
            wrong,
            lambda row, key=key, raw=raw: {
                "message": f"is {shorten(raw[row])}, not a positive integer",
                "fix": "write the image's size in pixels, or leave it out",
                "field": f"images[{row}].{key}",
                "id": _plain(rows[row].get("id", MISSING)),
            },
        )
        size.values[wrong] = 0
        sizes[key] = size.values[usable]
    unknown = int(((sizes["width"] == 0) | (sizes["height"] == 0)).sum())
    if unknown:
        findings.add(
            "note", "image-size-missing", f"{unknown} images have no width or height; read from the files",
            "nothing to do", field="images[]", count=unknown,
        )  # fmt: skip
    return Images(
        usable,
        column.values[usable],
        [names[row] for row in usable],
        sizes["width"],
        sizes["height"],
        np.ones(len(usable), dtype=bool),
    )


def _lookup(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Index of each of ``values`` in ``known`` (unique), -1 where it is not there."""
    if not len(known):
        return np.full(len(values), -1)
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], values).clip(max=len(known) - 1)
    return np.where(known[order][place] == values, order[place], -1)


def check_annotations(rows: list[dict], images: Images, categories: Categories, findings: Findings) -> Annotations:
    """Every field of every annotation; ``images`` must know their sizes by now as far as they can be known."""
    n = len(rows)
    raw_ids = columns.get(rows, "id")

    def where(row: int, field: str) -> dict:
        return {"field": f"annotations[{row}].{field}", "id": _plain(raw_ids[row])}

    ids = _annotation_ids(raw_ids, findings)
    image_column = _integers(rows, "annotation-image-id", "image_id", "annotations", findings, raw_ids)
    category_column = _integers(rows, "annotation-category-id", "category_id", "annotations", findings, raw_ids)
    image = _lookup(image_column.values, images.ids)
    category = _lookup(category_column.values, np.array(categories.ids, dtype=np.int64))
    image[image_column.bad] = -1
    category[category_column.bad] = -1
    bad_reference = np.zeros(n, dtype=bool)
    bad_reference[image_column.bad] = bad_reference[category_column.bad] = True
    findings.add_each(
        "error",
        "unknown-image",
        np.flatnonzero((image < 0) & ~bad_reference),
        lambda row: {
            "message": f"{image_column.values[row]} is not among the images",
            "fix": "add the image or remove the annotation",
            **where(row, "image_id"),
        },
    )
    findings.add_each(
        "error",
        "unknown-category",
        np.flatnonzero((category < 0) & ~bad_reference),
        lambda row: {
            "message": f"{category_column.values[row]} is not among the categories ({some(categories.ids, 5)})",
            "fix": "add the category or correct the id",
            **where(row, "category_id"),
        },
    )

    raw_boxes = columns.get(rows, "bbox")
    column = columns.boxes(raw_boxes)
    finite = np.ones(n, dtype=bool)
    finite[column.bad] = False
    for kind, code, message in (
        ((MISSING, None), "bbox-missing", "is missing"),
        ((), "bbox-not-numbers", "is not four finite numbers"),
    ):
        absent = [
            row for row in column.bad if (raw_boxes[row] in (MISSING, None) or raw_boxes[row] == []) == bool(kind)
        ]
        findings.add_each(
            "error",
            code,
            absent,
            lambda row, message=message, kind=kind: {
                "message": message if kind else f"{shorten(raw_boxes[row])} {message}",
                "fix": "write [x, y, width, height] in pixels",
                **where(row, "bbox"),
            },
        )
    findings.add_each(
        "error",
        "bbox-not-numbers",
        [row for row in column.cast if finite[row]],
        lambda row: {
            "message": f"{shorten(raw_boxes[row])} holds texts",
            "fix": "write numbers, or --fix",
            **where(row, "bbox"),
        },
    )
    boxes = column.values
    boxes[~finite] = 0
    widths = np.where(image >= 0, images.widths[image] if len(images.ids) else 0, 0)
    heights = np.where(image >= 0, images.heights[image] if len(images.ids) else 0, 0)
    sized = finite & (widths > 0) & (heights > 0)
    if _is_xyxy(boxes[sized], widths[sized], heights[sized]):
        row = int(np.flatnonzero(sized)[0])
        findings.add(
            "error",
            "bbox-xyxy",
            f"{shorten(raw_boxes[row])} and the others look like corners x1, y1, x2, y2: as x, y, width, height many "
            "leave their images",
            "write [x, y, width, height], or --fix",
            count=int(sized.sum()),
            **where(row, "bbox"),
        )
        boxes[sized, 2:] -= boxes[sized, :2]

    with np.errstate(over="ignore", invalid="ignore"):
        empty = finite & ((boxes[:, 2] <= 0) | (boxes[:, 3] <= 0))
        findings.add_each(
            "warning",
            "bbox-empty",
            np.flatnonzero(empty),
            lambda row: {
                "message": f"{shorten(raw_boxes[row])} has no area; the annotation is left out",
                "fix": "correct or remove it",
                **where(row, "bbox"),
            },
        )
        before = boxes[:, 2] * boxes[:, 3]
        boxes, outside = _clip(boxes, widths, heights, sized & ~empty)
    gone = outside & ((boxes[:, 2] <= 0) | (boxes[:, 3] <= 0))
    for mask, code, what in (
        (outside & ~gone, "bbox-clipped", "leaves its image of {}x{}; it is clipped"),
        (gone, "bbox-outside", "lies outside its image of {}x{}; the annotation is left out"),
    ):
        findings.add_each(
            "warning",
            code,
            np.flatnonzero(mask),
            lambda row, what=what: {
                "message": f"{shorten(raw_boxes[row])} {what.format(widths[row], heights[row])}",
                "fix": "correct the box",
                **where(row, "bbox"),
            },
        )
    keep = finite & ~empty & ~gone & (image >= 0) & (category >= 0)
    small = keep & ((boxes[:, 2] < 1) | (boxes[:, 3] < 1))
    if small.any():
        findings.add(
            "note", "bbox-sub-pixel", f"{int(small.sum())} are thinner than a pixel; training leaves out those that "
            "resizing keeps below one", "nothing to do", field="annotations[].bbox", count=int(small.sum()),
        )  # fmt: skip
    iscrowd = _iscrowd(rows, where, findings)
    areas = _areas(rows, boxes, before, outside, findings)
    _segmentations(rows, where, findings)
    ignored = [row for row, value in enumerate(columns.get(rows, "ignore", 0)) if value not in (0, None, False)]
    findings.add_each(
        "error",
        "ignore",
        ignored,
        lambda row: {
            "message": f"is {shorten(rows[row]['ignore'])}, which detectron2 does not support",
            "fix": 'mark it "iscrowd": 1 or remove it',
            **where(row, "ignore"),
        },
    )
    return Annotations(ids, image, category, boxes, areas, iscrowd, keep)


def _annotation_ids(raw: list, findings: Findings) -> np.ndarray:
    """Every annotation its own id, none 0; duplicates are an error, the rest is numbered and said."""
    column = columns.integers([0 if value is MISSING else value for value in raw])
    ids = column.values
    missing = [row for row, value in enumerate(raw) if value is MISSING]
    findings.add_each(
        "error",
        "annotation-id-not-an-integer",
        column.bad,
        lambda row: {
            "message": f"is {shorten(raw[row])}, not an integer",
            "fix": "write an integer, or --fix",
            "field": f"annotations[{row}].id",
        },
    )
    if column.cast:
        findings.add(
            "warning", "annotation-id-cast", f"{len(column.cast)} are not written as integers; read as integers",
            "write integers, or --fix", field="annotations[].id", count=len(column.cast),
        )  # fmt: skip
    if missing:
        findings.add(
            "warning", "annotation-id-missing", f"{len(missing)} are missing; numbered", "number them, or --fix",
            field="annotations[].id", count=len(missing),
        )  # fmt: skip
    anew = np.zeros(len(raw), dtype=bool)
    anew[missing] = anew[column.bad] = True
    good = np.flatnonzero(~anew)
    unique, first, counts = np.unique(ids[good], return_index=True, return_counts=True)
    twice = unique[counts > 1]
    if len(twice):
        findings.add(
            "error", "duplicate-annotation-id", f"used more than once: {some(twice.tolist())}",
            "give every annotation its own id, or --fix", field="annotations[].id", count=len(twice),
        )  # fmt: skip
        again = np.ones(len(good), dtype=bool)
        again[first] = False
        anew[good[again]] = True
    zero = np.flatnonzero((ids == 0) & ~anew)
    if len(zero):
        # COCOeval marks a ground truth as unmatched by 0 and so never counts the one whose id is 0.
        findings.add(
            "note", "annotation-id-zero", "is 0, COCOeval's mark for unmatched; it gets another id in evaluation",
            "nothing to do", field=f"annotations[{zero[0]}].id", id=0,
        )  # fmt: skip
        anew[zero] = True
    if anew.any():
        taken = ids[~anew]
        start = max(0, int(taken.max())) + 1 if len(taken) else 1
        if start + len(raw) >= 2**63:
            anew[:], start = True, 1
        ids[anew] = start + np.arange(int(anew.sum()))
    return ids


def _is_xyxy(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray) -> bool:
    """Whether the boxes make sense as corners and not as x, y, width, height.

    Read as x, y, width, height about three quarters of true corners leave the image (all whose center is not in its
    upper left quarter), while of true x, y, width, height hardly any does, and few have w > x and h > y.
    """
    if not len(boxes):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        x, y, w, h = boxes.T
        slack = np.maximum(2.0, 0.02 * np.maximum(widths, heights))
        corners = (w > x) & (h > y) & (x >= -OUTSIDE) & (y >= -OUTSIDE) & (w <= widths + slack) & (h <= heights + slack)
        leaves = (x + w > widths + slack) | (y + h > heights + slack)
        return corners.mean() >= 0.98 and leaves.mean() >= 0.25


def _clip(boxes: np.ndarray, widths: np.ndarray, heights: np.ndarray, rows: np.ndarray):
    """Clips the boxes of ``rows`` that stick out by more than OUTSIDE; returns boxes and the mask of those."""
    x1, y1 = boxes[:, 0], boxes[:, 1]
    x2, y2 = x1 + boxes[:, 2], y1 + boxes[:, 3]
    excess = np.maximum.reduce([-x1, -y1, x2 - widths, y2 - heights])
    outside = rows & ~(excess <= OUTSIDE)
    left, top = x1.clip(0, widths), y1.clip(0, heights)
    clipped = np.stack([left, top, x2.clip(0, widths) - left, y2.clip(0, heights) - top], axis=1)
    return np.where(outside[:, None], clipped, boxes), outside


def _iscrowd(rows: list[dict], where, findings: Findings) -> np.ndarray:
    raw = columns.get(rows, "iscrowd")
    absent = sum(value is MISSING or value is None for value in raw)
    if absent:
        findings.add(
            "note", "iscrowd-missing", f"{absent} are missing or null; read as 0", "nothing to do",
            field="annotations[].iscrowd", count=absent,
        )  # fmt: skip
    column = columns.integers([0 if v is MISSING or v is None else int(v) if type(v) is bool else v for v in raw])
    wrong = sorted(set(column.bad) | set(np.flatnonzero((column.values != 0) & (column.values != 1)).tolist()))
    findings.add_each(
        "error",
        "iscrowd",
        wrong,
        lambda row: {"message": f"is {shorten(raw[row])}", "fix": "write 0 or 1", **where(row, "iscrowd")},
    )
    column.values[wrong] = 0
    return column.values


def _areas(rows: list[dict], boxes: np.ndarray, before: np.ndarray, outside: np.ndarray, findings: Findings):
    raw = columns.get(rows, "area", None)
    areas = np.array([columns.number(value) for value in raw])
    absent = np.array([value is None for value in raw], dtype=bool)
    wrong = ~absent & ~(areas >= 0)
    for mask, severity, code, message in (
        (absent, "note", "area-missing", "are missing; width times height is used"),
        (wrong, "warning", "area-wrong", "are not numbers of at least 0; width times height is used"),
    ):
        if mask.any():
            findings.add(
                severity, code, f"{int(mask.sum())} {message}", "nothing to do", field="annotations[].area",
                count=int(mask.sum()),
            )  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):
        of_box = boxes[:, 2] * boxes[:, 3]
        again = absent | wrong | (outside & (areas == before))
    return np.where(again, of_box, areas)


def valid_segmentation(value: object) -> bool:
    """Polygons of at least three points, or a run-length encoding; nothing (null, [], "") is no segmentation."""
    if type(value) is dict:
        size, counts = value.get("size"), value.get("counts")
        sized = type(size) is list and len(size) == 2 and all(type(v) is int and v > 0 for v in size)
        if type(counts) is list:
            runs = all(type(v) is int and v >= 0 for v in counts)
            return sized and runs and sum(counts) == size[0] * size[1]
        return sized and type(counts) is str
    if type(value) is not list or not value:
        return False
    return all(
        type(polygon) is list
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and set(map(type, polygon)) <= {int, float}
        and all(map(math.isfinite, map(columns.number, polygon)))
        for polygon in value
    )


def _segmentations(rows: list[dict], where, findings: Findings) -> None:
    raw = columns.get(rows, "segmentation", None)
    findings.add_each(
        "warning",
        "segmentation",
        [row for row, value in enumerate(raw) if value and not valid_segmentation(value)],
        lambda row: {
            "message": f"{shorten(raw[row])} is neither polygons of three points or more nor a run-length encoding; "
            "the box is used without it",
            "fix": "correct or remove it",
            **where(row, "segmentation"),
        },
    )
