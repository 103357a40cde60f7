"""The tables ``images`` and ``categories`` of a COCO-format document, and the ids of its annotations.

Whether one may train on them is the findings' severity; errors stop, warnings and notes do not. ``truth`` stands for a
file that is read as ground truth alone, without its images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .. import columns
from ..columns import MISSING
from ..records import KINDS, Records
from .findings import Findings, shorten, some

NAME_LENGTH = 200
"""Characters of the name of a class."""


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


def records(document: dict, key: str, findings: Findings) -> Records | None:
    """The list ``key`` of the document when it is a list of objects, else None and an error."""
    value = document[key]
    if isinstance(value, Records):
        return value
    if not isinstance(value, list):
        findings.add("error", f"{key}-not-a-list", f"is {shorten(value)}", "write a list of objects", field=key)
        return None
    for row, record in enumerate(value):
        if type(record) is not dict:
            findings.add(
                "error", "not-an-object", f"is {shorten(record)}", "write an object {...}", field=f"{key}[{row}]"
            )
            return None
    return Records.of(value, KINDS.get(key, {"id": columns.wide}))


def _ids(rows: Records, key: str, table: str, findings: Findings, *, truth: bool) -> columns.Column:
    """The ids of all rows, with their findings."""
    column = rows.table["id"]
    if not truth:
        column = column.narrow()

    findings.add_each(
        "error",
        f"{key}-not-an-integer",
        column.bad,
        lambda row: {
            "message": "is missing" if "id" not in rows[row] else f"is {shorten(rows[row]['id'])}, not an integer",
            "fix": "write an integer",
            "field": f"{table}[{row}].id",
        },
    )
    if column.cast:
        findings.add(
            "warning",
            f"{key}-cast",
            f"{len(column.cast)} are not written as integers, the first "
            f"{shorten(rows[column.cast[0]]['id'])}; read as integers",
            "write integers, or --fix",
            field=f"{table}[].id",
            count=len(column.cast),
        )
    return column


def _twice(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | slice]:
    """The ids that stand more than once, and where each of all stands for the first time."""
    if ids.dtype != object and (ids[1:] > ids[:-1]).all():
        return ids[:0], slice(None)
    unique, first, counts = np.unique(ids, return_index=True, return_counts=True)
    return unique[counts > 1], first


def _plain(value: object) -> object:
    return None if value is MISSING else value


def check_categories(
    rows: Records, used: set[int], findings: Findings, *, drop_unused_root: bool, truth: bool
) -> Categories | None:
    """``used``: category ids that annotations name. None where the errors leave nothing to map."""
    if not rows:
        findings.add("error", "no-categories", "is empty", "list every class with id and name", field="categories")
        return None
    column = _ids(rows, "category-id", "categories", findings, truth=truth)
    ids = column.values.tolist()
    twice = [value for value, n in Counter(ids).items() if n > 1] if not column.bad else []
    if twice:
        findings.add(
            "error", "duplicate-category-id", f"used more than once: {some(twice)}", "give every class its own id",
            field="categories[].id", count=len(twice),
        )  # fmt: skip
    names = columns.get(rows[:], "name")
    if truth:
        names = [str(i) if name in (MISSING, None) else name for name, i in zip(names, ids, strict=True)]
    nameless = [row for row, name in enumerate(names) if not _fit_for_a_name(name)]
    findings.add_each(
        "error",
        "category-name",
        nameless,
        lambda row: {
            "message": (
                "has no name"
                if names[row] in (MISSING, None, "")
                else f"is {shorten(names[row])}, not a text of at most {NAME_LENGTH} characters"
            ),
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
            "warning" if truth else "error", "duplicate-category-name", f"used by several classes: {some(same)}",
            "merge or rename them", field="categories[].name", count=len(same),
        )  # fmt: skip
        names = [f"{name} (id {i})" if name in same else name for name, i in zip(names, ids, strict=True)]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    parents = {row: _plain(rows[row].get("supercategory")) for row in order}
    roots = [
        row
        for row in order
        if len(rows) > 1
        and not truth
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


def _fit_for_a_name(name: object) -> bool:
    if type(name) is not str or not name.strip() or len(name) > NAME_LENGTH or "\0" in name:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in name)  # lone surrogates, which no file can hold


def check_images(rows: Records, findings: Findings, *, truth: bool) -> Images:
    """Ids, file names and the sizes that the document gives."""
    if not rows:
        findings.add("error", "no-images", "is empty", "list the images", field="images")
    column = _ids(rows, "image-id", "images", findings, truth=truth)
    bad = np.zeros(len(rows), dtype=bool)
    bad[column.bad] = True
    good = np.flatnonzero(~bad)
    twice, first = _twice(column.values[good])
    if len(twice):
        findings.add(
            "error", "duplicate-image-id", f"used more than once: {some(twice.tolist())}",
            "give every image its own id",
            field="images[].id", count=len(twice),
        )  # fmt: skip
    kept = np.zeros(len(rows), dtype=bool)
    kept[good[first]] = True

    names = rows.table["file_name"].values.tolist()
    if truth:  # names are looked at where images are
        names = [name if type(name) is str else "" for name in names]
    nameless = [] if truth else [row for row, name in enumerate(names) if not _fit_for_a_path(name)]
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
    same = [] if truth else [name for name, n in Counter(names[row] for row in usable).items() if n > 1]
    if same:
        findings.add(
            "warning", "duplicate-file-name", f"images listed more than once: {some(same)}", "list each image once",
            field="images[].file_name", count=len(same),
        )  # fmt: skip
    sizes = {}
    for key in ("width", "height"):
        size = rows.table[key]
        values, wrong = size.values.copy(), (size.values <= 0) & ~size.missing
        wrong[size.bad] = True

        def word(row: int, key: str = key) -> dict:
            return {
                "message": f"is {shorten(rows[row][key])}, not a positive integer",
                "fix": "write the image's size in pixels, or leave it out",
                "field": f"images[{row}].{key}",
                "id": _plain(rows[row].get("id", MISSING)),
            }

        findings.add_each("error", "image-size-not-positive", np.flatnonzero(wrong), word)
        values[wrong] = 0
        sizes[key] = values[usable]
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


def _fit_for_a_path(name: object) -> bool:
    return type(name) is str and bool(name) and "\0" not in name and not any("\ud800" <= c <= "\udfff" for c in name)


def annotation_ids(rows: Records, findings: Findings, *, quiet: bool = False) -> np.ndarray:
    """Every annotation its own id, none 0; duplicates are an error, the rest is numbered and, unless quiet, said."""
    column = rows.table["id"] if quiet else rows.table["id"].narrow()
    ids, missing = column.values.copy(), np.flatnonzero(column.missing)
    bad = np.setdiff1d(column.bad, missing).astype(np.int64)
    findings.add_each(
        "error",
        "annotation-id-not-an-integer",
        bad,
        lambda row: {
            "message": f"is {shorten(rows[row]['id'])}, not an integer",
            "fix": "write an integer, or --fix",
            "field": f"annotations[{row}].id",
        },
    )
    if column.cast and not quiet:
        findings.add(
            "warning", "annotation-id-cast", f"{len(column.cast)} are not written as integers; read as integers",
            "write integers, or --fix", field="annotations[].id", count=len(column.cast),
        )  # fmt: skip
    if len(missing) and not quiet:
        findings.add(
            "warning", "annotation-id-missing", f"{len(missing)} are missing; numbered", "number them, or --fix",
            field="annotations[].id", count=len(missing),
        )  # fmt: skip
    anew = np.zeros(len(rows), dtype=bool)
    anew[missing] = anew[bad] = True
    good = np.flatnonzero(~anew)
    twice, first = _twice(ids[good])
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
        if start + len(rows) >= 2**63:
            anew[:], start = True, 1
        ids[anew] = start + np.arange(int(anew.sum()))
    return ids
