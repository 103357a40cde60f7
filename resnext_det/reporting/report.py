"""One HTML page about an evaluation: numbers at every threshold, kinds of error, the images. It needs no network."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..annotations.check.files import path_inside
from ..annotations.coco import Detections
from ..annotations.dataset import Dataset
from ..annotations.error_kinds import KINDS, kinds_of
from ..annotations.evaluation import Evaluation
from ..annotations.thresholds import RIGHT, Matches, match
from ..errors import UserError
from ..files import atomic_write, shown
from ..images import MAX_MEGAPIXELS, read_image

TEMPLATE = Path(__file__).with_name("report.html")
STEPS = 50_000
"""Thresholds of the page between 0 and the largest score; scores are rounded down to one."""
IMAGE_SIDE = 640  # pixels, the longer side of an image inside the page
MAX_BYTES = 25_000_000
"""Of the page: so many images as fit are inside."""
COLORS = {
    "correct": "#2f9e44", "localisation": "#c77700", "confusion": "#c2379b", "both": "#8250c8", "duplicate": "#1c7ed6",
    "background": "#d62828", "ignored": "#868e96", "missed": "#7a4b2a",
}  # fmt: skip
MEANINGS = {
    "correct": "the right class, IoU 0.5 or more",
    "localisation": "the right class, badly placed: IoU 0.1 to 0.5",
    "confusion": "well placed, the wrong class",
    "both": "badly placed and the wrong class",
    "duplicate": "an object that a better detection has found",
    "background": "nothing there: IoU below 0.1",
    "ignored": "inside a crowd, not counted",
    "missed": "an object that no detection found",
}


@dataclass(frozen=True)
class Model:
    """One side of the page.

    Attributes:
        name: its heading.
        detections, evaluation: what was found, and the outcome (``bbox``).
    """

    name: str
    detections: Detections
    evaluation: Evaluation


def write_report(
    path: str | os.PathLike,
    truth: Dataset,
    detections: Detections,
    evaluation: Evaluation,
    *,
    image_root: str | os.PathLike | None = None,
    title: str = "Evaluation",
    name: str = "detections",
    others: Sequence[Model] = (),
    score_threshold: float | None = None,
    images: int = 200,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Path:
    """Write the page; it needs no other file, and no network.

    Args:
        path: the HTML file.
        truth, detections, evaluation: what was compared, and the outcome (``bbox``).
        image_root: folder of the images. Those that are not inside the page are read from there by the browser, under
            their path from the page; boxes stand on gray where there is none.
        title: heading, such as the set's name.
        name: of the detector.
        others: further detectors on the same set, to compare.
        score_threshold: where the slider stands at first; by default at the best F1.
        images: how many of those with most errors are inside the page, as far as :data:`MAX_BYTES` allow.
        max_megapixels: larger images are not read.
    """
    path = Path(path)
    models = [Model(name, detections, evaluation), *others]
    limit = evaluation.max_detections[-1]
    matched = [match(truth, model.detections, limit=limit) for model in models]
    columns = _object_columns(truth)
    sides, errors = [], np.zeros(len(truth.image_ids), dtype=np.int64)
    for number, (model, matches) in enumerate(zip(models, matched, strict=True)):
        side, start = _side(model, matches, score_threshold)
        found, wrong = _columns(matches, side["scale"], start)
        columns |= {f"{number}.{key}": value for key, value in found.items()}
        errors += wrong
        sides.append(side)
    data, layout = _packed(columns)
    names = [shown(name) for name in truth.class_names]
    first = evaluation.precision[:, :, :, 0, -1].mean(axis=(0, 1))
    meta = {
        "title": shown(title), "classes": names, "order": np.argsort(-first, kind="stable").tolist(), "kinds": KINDS,
        "colors": COLORS, "meanings": MEANINGS, "steps": STEPS, "models": sides, "layout": layout,
        "objects": int((truth.iscrowd == 0).sum()), "images": _image_facts(truth, columns["o.reach"]),
        "root": _root(path, image_root), "reasons": [shown(reason, 2000) for reason in evaluation.reasons()],
    }  # fmt: skip
    page = TEMPLATE.read_text(encoding="utf-8")
    head, rest = page.split("/*META*/")
    middle, rest = rest.split("/*IMAGES*/")
    tail, end = rest.split("/*COLUMNS*/")
    text = _json(meta)
    budget = MAX_BYTES - len(page) - len(text.encode()) - len(data)
    worst = np.argsort(-errors, kind="stable")[:images].tolist()
    inside = {} if image_root is None else _images(truth, worst, image_root, budget, max_megapixels)
    with atomic_write(path) as file:
        file.writelines((head, text, middle, _json(inside), tail, data, end))
    return path


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", " ")


def _root(page: Path, image_root: str | os.PathLike | None) -> str | None:
    if image_root is None:
        return None
    try:
        relative = os.path.relpath(image_root, page.parent)
    except ValueError:  # another drive
        return Path(image_root).resolve().as_uri() + "/"
    return "".join(f"{part}/" for part in Path(relative).parts)


def _side(model: Model, matches: Matches, start: float | None) -> tuple[dict[str, Any], int]:
    """What the page says of a model beside its columns, and the step at which its slider begins."""
    scale = max(1.0, float(matches.score.max(initial=0.0)))
    results = model.evaluation.results()
    best = matches.results()
    first = best["threshold"] if start is None else start
    step = 0 if math.isnan(first) else int(_steps(np.array([first]), scale)[0])
    kinds = len(matches.truth.class_names)
    per_class = [
        [_number(100 * model.evaluation.average_precision(iou, category=k)) for iou in (None, 0.5)]
        for k in range(kinds)
    ]
    return {
        "name": shown(model.name), "scale": scale, "start": step, "detections": len(model.detections),
        "results": {key: _number(results[key]) for key in ("AP", "AP50", "AP75")}, "classes": per_class,
        "best": [_number(best[f"threshold-{name}"], 6) for name in matches.truth.class_names],
    }, step  # fmt: skip


def _number(value: float, digits: int = 4) -> float | None:
    return None if math.isnan(value) else round(value, digits)


def _steps(scores: np.ndarray, scale: float) -> np.ndarray:
    """Scores rounded down to steps: one is kept at step s exactly where it is s / STEPS * scale or more."""
    steps = np.clip(scores / scale * STEPS, 0, STEPS).astype(np.int64)
    steps -= steps / STEPS * scale > scores
    steps += (steps + 1) / STEPS * scale <= scores
    return np.clip(steps, 0, STEPS).astype(np.uint16)


def _sizes(areas: np.ndarray) -> np.ndarray:
    return ((areas >= 32**2).astype(np.uint8) + (areas >= 96**2)).astype(np.uint8)


def _boxes(boxes: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Boxes in 65,536 steps of one and a half times their image's longer side, from a quarter of that outside of it."""
    unit = 65535 / 1.5 / side[:, None]
    return np.clip(np.rint(boxes * unit + np.array([16384, 16384, 0, 0])), 0, 65535).astype(np.uint16)


def _small(values: np.ndarray, largest: int) -> np.ndarray:
    """Classes in one byte where there are few, else in two."""
    return values.astype(np.uint8 if largest < 255 else np.uint16)


def _reach(truth: Dataset) -> np.ndarray:
    """(I, 2) width and height of each image, or as far as its objects reach where the set does not say."""
    size = np.stack([truth.widths, truth.heights], axis=1).astype(float)
    reach = np.ones_like(size)
    np.maximum.at(reach, truth.image, np.clip(truth.boxes[:, :2] + truth.boxes[:, 2:], 1, 1e6))
    return np.where(size > 0, size, reach)


def _object_columns(truth: Dataset) -> dict[str, np.ndarray]:
    """The objects, by image."""
    order = np.argsort(truth.image, kind="stable")
    reach = _reach(truth)
    side = reach.max(axis=1)[truth.image[order]]
    return {
        "o.box": _boxes(truth.boxes[order], side),
        "o.count": np.bincount(truth.image, minlength=len(truth.image_ids)).astype(np.uint32),
        "o.class": _small(truth.category[order], len(truth.class_names)),
        "o.crowd": truth.iscrowd[order].astype(np.uint8),
        "o.size": _sizes(truth.areas[order]),
        "o.reach": reach,
    }


def _columns(matches: Matches, scale: float, start: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The detections of a model by image and falling score, and how many errors each image holds at the first step."""
    truth = matches.truth
    order = np.lexsort((-matches.score, matches.image))
    kinds, _ = kinds_of(matches)
    steps = _steps(matches.score, scale)
    taken, partner, right = matches.taken[0], matches.partner, matches.outcomes[0] == RIGHT
    areas = matches.box[:, 2] * matches.box[:, 3]
    areas[right] = truth.areas[taken[right]]
    crowd = np.append(truth.iscrowd == 1, False)
    classes = len(truth.class_names)
    of_partner = np.append(truth.category, classes)[partner]
    of_partner[crowd[partner]] = classes + 1
    by_image = np.argsort(truth.image, kind="stable")
    found, held = np.zeros(len(truth), dtype=np.uint16), np.zeros(len(truth), dtype=np.uint16)
    found[taken[right]] = steps[right] + 1
    held[partner[partner >= 0]] = steps[partner >= 0] + 1
    side = _reach(truth).max(axis=1)[matches.image]
    wrong = (steps >= start) & ~np.isin(kinds, [KINDS.index("correct"), KINDS.index("ignored")])
    missed = (found < start + 1) & (truth.iscrowd == 0)
    images = len(truth.image_ids)
    errors = np.bincount(matches.image[wrong], minlength=images) + np.bincount(truth.image[missed], minlength=images)
    return {
        "count": np.bincount(matches.image, minlength=images).astype(np.uint32),
        "score": steps[order],
        "box": _boxes(matches.box, side)[order],
        "found": found[by_image],
        "taken": held[by_image],
        "class": _small(matches.category[order], classes),
        "partner": _small(of_partner[order], classes + 2),
        "kind": kinds[order],
        "size": _sizes(areas)[order],
    }, errors


def _packed(columns: dict[str, np.ndarray]) -> tuple[str, list[tuple[str, str, int, int]]]:
    """Columns of whole numbers as one text, and where each stands: name, type, offset in bytes, length."""
    named = [(name, column) for name, column in columns.items() if column.dtype.kind == "u"]
    named.sort(key=lambda item: -item[1].itemsize)  # so that all are aligned
    layout, offset = [], 0
    for name, column in named:
        layout.append((name, f"u{column.itemsize}", offset, column.size))
        offset += column.nbytes
    raw = b"".join(column.astype(column.dtype.newbyteorder("<")).tobytes() for _, column in named)
    return base64.b64encode(zlib.compress(raw, 6)).decode("ascii"), layout


def _image_facts(truth: Dataset, reach: np.ndarray) -> list[tuple[str, int, int, int]]:
    """Name, width and height of each image, and whether a browser may look for it under this name."""
    facts = []
    for name, (width, height) in zip(truth.file_names, np.ceil(reach).astype(int).tolist(), strict=True):
        below = shown(name) == name and not os.path.isabs(name) and ".." not in name.split("/")
        facts.append((shown(name), width, height, int(bool(name) and below)))
    return facts


def _images(
    truth: Dataset, chosen: Sequence[int], root: str | os.PathLike, budget: int, max_megapixels: float
) -> dict[int, str]:
    """Images as data of the page, as many of ``chosen`` as fit; those that cannot be read are left out."""
    inside = {}
    for i in chosen:
        file = path_inside(root, truth.file_names[i])
        if file is None:
            continue
        try:
            pixels = read_image(file, "RGB", max_megapixels=max_megapixels, policy="load")
        except UserError:
            continue
        if pixels is None:
            continue
        image = Image.fromarray(pixels)
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, format="jpeg", quality=80)
        text = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        budget -= len(text) + 16
        if budget < 0:
            break
        inside[i] = text
    return inside
