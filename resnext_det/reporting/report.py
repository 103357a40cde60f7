"""One HTML page about an evaluation, images inside: what the detector finds, its mistakes, and their places."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from ..annotations.check.files import path_inside
from ..annotations.coco import Detections
from ..annotations.dataset import Dataset, positions
from ..annotations.error_kinds import KINDS, ErrorKinds, error_kinds
from ..annotations.evaluation import Evaluation
from ..errors import UserError
from ..files import atomic_write
from ..files import shown as plain
from ..images import MAX_MEGAPIXELS, read_image
from .boxes import draw_boxes, drawable
from .text import drawn, fonts

SCORE_THRESHOLD = 0.5
"""Detections that the error kinds and the images show."""
IMAGE_SIDE = 560  # pixels, the longer side of an image on the page
NAME_SHOWN = 40  # characters of a class name in a drawing
CLASSES_DRAWN = 40  # bars in one plot stay readable up to here
CURVES_DRAWN = 8
CLASSES_OPEN = 20  # a longer table of classes is folded away
COLORS = {
    "correct": (46, 160, 67), "localisation": (230, 159, 0), "confusion": (204, 60, 160), "both": (130, 80, 200),
    "duplicate": (30, 130, 220), "background": (214, 40, 40), "ignored": (140, 140, 140), "missed": (90, 90, 90),
}  # fmt: skip
MEANINGS = {
    "correct": "the right class, IoU 0.5 or more",
    "localisation": "the right class, badly placed: IoU 0.1 to 0.5",
    "confusion": "well placed, the wrong class",
    "both": "badly placed and the wrong class",
    "duplicate": "an object that a better detection has found",
    "background": "nothing there: IoU below 0.1",
    "ignored": "inside a crowd, not counted",
    "missed": "an object that nothing points at",
}
TRUTH_COLOR = (46, 160, 67)
STYLE = """
:root{color-scheme:light}body{font:15px/1.5 system-ui,sans-serif;color:#1c2128;background:#f5f6f8;margin:0}
main{max-width:1160px;margin:0 auto;padding:28px 24px 60px}h1{font-size:26px;margin:0 0 4px}
h2{font-size:19px;margin:34px 0 10px}p{margin:6px 0;max-width:75ch}.quiet{color:#59636e}
.cards{display:flex;gap:12px;flex-wrap:wrap;margin:18px 0}.card{background:#fff;border:1px solid #dde1e6;
border-radius:10px;padding:10px 18px;min-width:96px}.card b{display:block;font-size:25px;line-height:1.2}
td:first-child{white-space:nowrap}.card.lead{background:#123c69;color:#fff;border-color:#123c69}
.split{align-items:start}summary{cursor:pointer}.panel{background:#fff;border:1px solid #dde1e6;
border-radius:10px;padding:14px 18px;margin:10px 0}img{max-width:100%;height:auto;display:block}
table{border-collapse:collapse;width:100%}th,td{padding:5px 10px;text-align:right;border-bottom:1px solid #eceff2;
font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}th{color:#59636e;font-weight:600}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:10px}.pair img{border-radius:6px;width:100%}
.key{display:flex;gap:6px 16px;flex-wrap:wrap;font-size:13px}.dot{display:inline-block;width:11px;height:11px;
border-radius:3px;margin-right:5px}.split{display:grid;grid-template-columns:1fr 1fr;gap:12px}
@media(max-width:800px){.split,.pair{grid-template-columns:1fr}}
"""


def write_report(
    path: str | os.PathLike,
    truth: Dataset,
    detections: Detections,
    evaluation: Evaluation,
    *,
    image_root: str | os.PathLike | None = None,
    title: str = "Evaluation",
    score_threshold: float = SCORE_THRESHOLD,
    shown_images: int = 4,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Path:
    """Write the page; it needs no other file.

    Args:
        path: the HTML file.
        truth, detections, evaluation: what was compared, and the outcome (``bbox``).
        image_root: folder of the images; without it, or where one is missing, boxes stand on gray.
        title: heading, such as the set's name.
        score_threshold: error kinds and images show the detections from here up; AP counts all.
        shown_images: how many best and how many worst images to show.
        max_megapixels: larger images are not read.
    """
    shown = detections.take(detections.scores >= score_threshold)
    errors = error_kinds(truth, shown)
    results = evaluation.results()
    objects = int(errors.objects.sum())
    per_class = np.bincount(truth.category[errors.objects], minlength=len(truth.class_names))
    parts = [
        f"<h1>{html.escape(plain(title))}</h1>",
        f'<p class="quiet">{len(truth.image_ids):,} images, {objects:,} objects, {len(truth.class_names)} classes, '
        f"{len(detections):,} detections. Numbers are percent, COCO's definitions.</p>",
        _cards(results),
        "".join(f'<p class="quiet">{html.escape(plain(reason, 2000))}</p>' for reason in evaluation.reasons()),
        '<h2>Classes</h2><div class="split">',
        f'<div class="panel">{_image(_bars(evaluation), "AP and AP50 of each class")}</div>',
        f'<div class="panel">{_image(_precision_recall(evaluation, per_class), "precision and recall")}</div></div>',
        f'<div class="panel">{_class_table(truth, shown, evaluation, errors)}</div>',
        f"<h2>Kinds of error</h2><p>Of the {len(shown):,} detections with a score of {score_threshold:g} or more, and "
        f"of the objects that none of them points at.</p>",
        f'<div class="split"><div class="panel">{_image(_kinds_plot(errors), "detections by kind")}</div>'
        f'<div class="panel">{_kinds_table(errors)}</div></div>',
        _galleries(truth, shown, errors, image_root, shown_images, score_threshold, max_megapixels),
    ]
    with atomic_write(path) as file:
        file.write(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(plain(title))}</title>')
        file.write('<meta name="viewport" content="width=device-width,initial-scale=1">')
        file.write(f"<style>{STYLE}</style><main>{''.join(parts)}</main></html>\n")
    return Path(path)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _cards(results: dict[str, float]) -> str:
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"]
    cells = [
        f'<div class="card{" lead" if name in ("AP", "AP50") else ""}">{name}<b>{_percent(results[name])}</b></div>'
        for name in names
        if name in results
    ]
    return f'<div class="cards">{"".join(cells)}</div>'


def _embedded(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_fontfamily(fonts())
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    return f'<img src="{_embedded(buffer.getvalue())}" alt="{html.escape(alt)}">'


def _axes(width: float = 5.6, height: float = 4.2) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _by_ap(evaluation: Evaluation) -> list[tuple[int, float, float]]:
    """(class, AP, AP50) from the best class down; classes without ground truth are left out."""
    rows = [
        (k, 100 * evaluation.average_precision(category=k), 100 * evaluation.average_precision(0.5, category=k))
        for k in range(len(evaluation.class_names))
    ]
    return sorted((row for row in rows if not math.isnan(row[1])), key=lambda row: (-row[1], row[0]))


def _class_drawn(evaluation: Evaluation, k: int) -> str:
    return drawn(evaluation.class_names[k], f"id {evaluation.category_ids[k]}")


def _bars(evaluation: Evaluation) -> Figure:
    rows = _by_ap(evaluation)
    half = CLASSES_DRAWN // 2
    cut = len(rows) > CLASSES_DRAWN
    rows = rows[:half] + rows[-half:] if cut else rows
    figure, axes = _axes(height=max(4.2, 0.24 * len(rows) + 1))
    places = np.arange(len(rows))
    axes.barh(places, [row[2] for row in rows], color="#b7cfe8", label="AP50")
    axes.barh(places, [row[1] for row in rows], color="#123c69", height=0.45, label="AP")
    axes.set_yticks(places, [_class_drawn(evaluation, row[0]) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(axis="x", alpha=0.3)
    note = f": the {half} best and the {half} worst" if cut else ""
    axes.set_title(f"AP by class{note}", loc="left")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.3 if not cut else -0.1), ncols=2)
    return figure


def _precision_recall(evaluation: Evaluation, objects: np.ndarray) -> Figure:
    """Interpolated precision at the 101 recalls, IoU 0.5: the classes with most objects, and the mean of all."""
    figure, axes = _axes()
    at = int(np.flatnonzero(np.isclose(evaluation.iou_thresholds, 0.5))[0])
    curves = evaluation.precision[at, :, :, 0, -1]  # recalls x classes
    rows = _by_ap(evaluation)
    names = sorted(rows, key=lambda row: -objects[row[0]])[:CURVES_DRAWN]
    colors = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, max(len(names), 1)))
    for (k, _, ap50), color in zip(names, colors, strict=False):
        label = f"{_class_drawn(evaluation, k)} {ap50:.1f}"
        axes.plot(evaluation.recall_thresholds, curves[:, k], color=color, linewidth=1.2, label=label)
    if rows:
        mean = curves[:, [row[0] for row in rows]].mean(axis=1)
        label = f"mean of {len(rows)}: {100 * mean.mean():.1f}"
        axes.plot(evaluation.recall_thresholds, mean, color="#d62828", linewidth=2.6, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    axes.set_title(
        "Precision and recall at IoU 0.5" + (", largest classes" if len(rows) > len(names) else ""), loc="left"
    )
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _class_table(truth: Dataset, shown: Detections, evaluation: Evaluation, errors: ErrorKinds) -> str:
    order = [k for k, _, _ in _by_ap(evaluation)]
    order += [k for k in range(len(evaluation.class_names)) if k not in order]
    lines = []
    for k in order:
        category = evaluation.category_ids[k]
        ap, ap50 = (100 * evaluation.average_precision(iou, category=k) for iou in (None, 0.5))
        of_class = shown.category_ids == category
        numbers = [
            int((errors.objects & (truth.category == k)).sum()),
            int((of_class & (errors.kinds == KINDS.index("correct"))).sum()),
            int((of_class & (errors.kinds != KINDS.index("correct")) & (errors.kinds != KINDS.index("ignored"))).sum()),
            int((errors.missed & (truth.category == k)).sum()),
        ]
        cells = [_percent(ap), _percent(ap50), *(f"{number:,}" for number in numbers)]
        name = html.escape(plain(evaluation.class_names[k]))
        lines.append(f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("Class", "AP", "AP50", "objects", "correct", "wrong", "missed"))
    opened = " open" if len(lines) <= CLASSES_OPEN else ""
    table = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    return f"<details{opened}><summary>All {len(lines)} classes</summary>{table}</details>"


def _hex(kind: str) -> str:
    return "#{:02x}{:02x}{:02x}".format(*COLORS[kind])


def _kinds_plot(errors: ErrorKinds) -> Figure:
    counts = {kind: number for kind, number in errors.counts().items() if kind != "correct"}
    figure, axes = _axes(height=3.4)
    places = np.arange(len(counts))
    bars = axes.barh(places, list(counts.values()), color=[_hex(kind) for kind in counts])
    axes.bar_label(bars, padding=3)
    axes.set_yticks(places, list(counts))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title("Errors by kind", loc="left")
    return figure


def _kinds_table(errors: ErrorKinds) -> str:
    lines = [
        f'<tr><td><span class="dot" style="background:{_hex(kind)}"></span>{kind}</td><td>{number:,}</td>'
        f'<td style="text-align:left">{MEANINGS[kind]}</td></tr>'
        for kind, number in errors.counts().items()
    ]
    return (
        f'<table><tr><th>Kind</th><th>Count</th><th style="text-align:left">Meaning</th></tr>{"".join(lines)}</table>'
    )


def _galleries(
    truth: Dataset,
    shown: Detections,
    errors: ErrorKinds,
    image_root: str | os.PathLike | None,
    shown_images: int,
    score_threshold: float,
    max_megapixels: float,
) -> str:
    rated = []
    for image, image_id in enumerate(truth.image_ids.tolist()):
        of_image = shown.image_ids == image_id
        correct = int((errors.kinds[of_image] == KINDS.index("correct")).sum())
        counted = int((errors.kinds[of_image] != KINDS.index("ignored")).sum())
        objects = int((errors.objects & (truth.image == image)).sum())
        if objects + counted:
            rated.append((2 * correct / (objects + counted), objects + counted, image))
    # Among equals, the image with more in it is the better and the worse example.
    best = sorted(rated, key=lambda row: (-row[0], -row[1], row[2]))[:shown_images]
    worst = [row for row in sorted(rated, key=lambda row: (row[0], -row[1], row[2])) if row not in best][:shown_images]
    dots = "".join(
        f'<span><span class="dot" style="background:{_hex(kind)}"></span>{kind}</span>'
        for kind in KINDS
    )  # fmt: skip
    parts = []
    for name, rows in (("Worst images", worst), ("Best images", best)):
        parts.append(
            f"<h2>{name}</h2><p>By F1 at IoU 0.5. Left the ground truth (missed objects gray), right the detections "
            f'from a score of {score_threshold:g}.</p><div class="key">{dots}</div>'
        )
        for f1, _, image in rows:
            parts.append(_pair(truth, shown, errors, image, image_root, f1, max_megapixels))
    return "".join(parts)


def _pair(
    truth: Dataset,
    shown: Detections,
    errors: ErrorKinds,
    image: int,
    image_root: str | os.PathLike | None,
    f1: float,
    max_megapixels: float,
) -> str:
    here = np.flatnonzero(truth.image == image)
    found = np.flatnonzero(shown.image_ids == truth.image_ids[image])
    boxes, ids = truth.boxes[here], truth.category_ids.tolist()
    names = [drawable(plain(name, NAME_SHOWN), f"id {i}") for name, i in zip(truth.class_names, ids, strict=True)]
    pixels, scale = _image_shrunk(truth, image, image_root, np.concatenate([boxes, shown.boxes[found]]), max_megapixels)
    crowds = truth.iscrowd[here].tolist()
    colors = [
        COLORS["ignored"] if crowd else COLORS["missed"] if errors.missed[i] else TRUTH_COLOR
        for i, crowd in zip(here, crowds, strict=True)
    ]
    classes = truth.category[here].tolist()
    texts = [names[k] + (" (crowd)" if crowd else "") for k, crowd in zip(classes, crowds, strict=True)]
    left = draw_boxes(pixels, boxes * scale, texts, colors)
    found = found[np.argsort(shown.scores[found])]  # the surest on top
    kinds = [KINDS[kind] for kind in errors.kinds[found]]
    classes = positions(shown.category_ids[found], truth.category_ids).tolist()
    scored = zip(classes, shown.scores[found].tolist(), strict=True)
    texts = [f"{names[k]} {100 * score:.0f}%" for k, score in scored]
    right = draw_boxes(pixels, shown.boxes[found] * scale, texts, [COLORS[kind] for kind in kinds])
    name = html.escape(plain(truth.file_names[image] or truth.image_ids[image]))
    sides = "".join(f'<img src="{_png(side)}" alt="{what} of {name}">' for side, what in
                    ((left, "ground truth"), (right, "detections")))  # fmt: skip
    errors_here = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds) or "nothing detected"
    missed = int(errors.missed[here].sum())
    return (
        f'<div class="panel"><p><b>{name}</b> <span class="quiet">F1 {100 * f1:.0f}; {errors_here}'
        f'{f", {missed} missed" if missed else ""}</span></p><div class="pair">{sides}</div></div>'
    )


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    # 256 colors: a third of the bytes, and boxes and letters stay sharp
    image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, format="png", optimize=True)
    return _embedded(buffer.getvalue())


def _image_shrunk(
    truth: Dataset, image: int, image_root: str | os.PathLike | None, boxes: np.ndarray, max_megapixels: float
) -> tuple[Image.Image, float]:
    """The image on the page (gray if it cannot be read), and its size relative to the file's."""
    path = None if image_root is None else path_inside(image_root, truth.file_names[image])
    if path is not None:
        try:
            pixels = read_image(path, "RGB", max_megapixels=max_megapixels, policy="load")
        except UserError:
            pixels = None
        if pixels is not None:
            whole = Image.fromarray(pixels)
            scale = IMAGE_SIDE / max(whole.size)
            return whole.resize(_size(*whole.size, scale), Image.Resampling.BILINEAR), scale
    reach = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist() if len(boxes) else [64, 64]
    width = int(truth.widths[image]) or max(math.ceil(min(reach[0], 1e9)), 1)
    height = int(truth.heights[image]) or max(math.ceil(min(reach[1], 1e9)), 1)
    scale = IMAGE_SIDE / max(width, height)
    return Image.new("RGB", _size(width, height, scale), (226, 229, 233)), scale


def _size(width: int, height: int, scale: float) -> tuple[int, int]:
    return max(round(width * scale), 1), max(round(height * scale), 1)
