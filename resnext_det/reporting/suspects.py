"""Probable wrong labels on one HTML page: each cut out of its image, with its label and what was found there."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.check.files import path_inside
from ..annotations.dataset import Dataset
from ..errors import UserError
from ..files import atomic_write, shown
from ..images import MAX_MEGAPIXELS, read_image
from .boxes import draw_boxes

LABEL, FOUND, OTHER = (214, 40, 40), (28, 126, 214), (96, 96, 96)
SIDE = 360  # pixels, the longer side of a cut-out
QUESTIONS = {
    "missing": "no label here?",
    "swapped": "another class?",
    "shifted": "a box in the wrong place?",
    "invented": "nothing there?",
}
_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>
:root{{color-scheme:light dark}}body{{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:0 auto;padding:20px;
overflow-wrap:anywhere}}ol{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(260px,100%),1fr));gap:16px;
padding:0;list-style:none}}figure{{margin:0}}img{{max-width:100%;border-radius:6px}}figcaption{{font-size:13.5px}}
</style><main><h1>{title}</h1><p>{number} labels that the detections contradict, the most probable first{part}. Red: the
label. Blue: what was found. Gray: other labels.</p><ol>
"""


def write_suspects(
    path: str | os.PathLike,
    truth: Dataset,
    records: Sequence[Mapping[str, Any]],
    image_root: str | os.PathLike | None,
    *,
    images: int = 200,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Path:
    """Write the page; it needs no other file, and no network.

    Args:
        path: the HTML file.
        truth: whose labels are in doubt.
        records: :meth:`~resnext_det.annotations.label_errors.LabelErrors.records`.
        image_root: folder of the images; suspects whose image cannot be read there stand without it.
        images: how many are on the page.
        max_megapixels: larger images are not read.
    """
    path = Path(path)
    part = f"; here the first {images}" if len(records) > images else ""
    head = _HEAD.format(
        title=escape(f"Suspects in {shown(os.path.basename(truth.source))}"), number=len(records), part=part
    )
    with atomic_write(path) as file:
        file.write(head)
        for number, record in enumerate(records[:images], start=1):
            file.write(
                f"<li><figure>{_image(truth, record, image_root, max_megapixels)}<figcaption>{_words(number, record)}"
            )
            file.write("</figcaption></figure></li>\n")
        file.write("</ol></main></html>\n")
    return path


def _words(number: int, record: Mapping[str, Any]) -> str:
    label, found = record.get("label"), record.get("found")
    parts = [f"<b>{number}. {escape(QUESTIONS[record['kind']])}</b> {record['score']:.2f}"]
    if label:
        parts.append(f"label {escape(shown(label['class']))}, annotation {label['annotation_id']}")
    if found:
        parts.append(f"found {escape(shown(found['class']))} {found['score']:.2f}")
    return "<br>".join([*parts, escape(shown(record["file_name"] or f"image {record['image_id']}"))])


def _image(truth: Dataset, record: Mapping[str, Any], root: str | os.PathLike | None, max_megapixels: float) -> str:
    """The place in its image, as an element of HTML; "" where the image cannot be read."""
    file = None if root is None else path_inside(root, record["file_name"])
    if file is None:
        return ""
    try:
        pixels = read_image(file, "RGB", max_megapixels=max_megapixels, policy="load")
    except UserError:
        return ""
    if pixels is None:
        return ""
    own = [(record[key], color) for key, color in (("label", LABEL), ("found", FOUND)) if key in record]
    boxes = np.array([one["bbox"] for one, _ in own], dtype=float)
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    margin = max(0.6 * float((high - low).max()), 30.0)
    size = np.array(pixels.shape[1::-1])
    left, top = np.clip(low - margin, 0, size - 1).astype(int).tolist()
    right, bottom = np.clip(np.ceil(high + margin), [left + 1, top + 1], size).astype(int).tolist()
    image = np.flatnonzero(truth.image_ids == record["image_id"])[0]
    neighbors = truth.boxes[
        (truth.image == image) & (truth.annotation_ids != record.get("label", {}).get("annotation_id"))
    ]
    drawn = draw_boxes(
        pixels[top:bottom, left:right],
        np.concatenate([neighbors, boxes]) - [left, top, 0, 0],
        [*[""] * len(neighbors), *(one["class"] for one, _ in own)],
        [*[OTHER] * len(neighbors), *(color for _, color in own)],
        scale=SIDE / max(right - left, bottom - top),
    )
    buffer = io.BytesIO()
    drawn.save(buffer, format="jpeg", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = escape(f"{record['kind']}: {', '.join(shown(one['class']) for one, _ in own)}", quote=True)
    return f'<img loading="lazy" alt="{text}" src="data:image/jpeg;base64,{data}">'
