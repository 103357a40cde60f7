"""LabelMe: a JSON file beside each image, with rectangles and polygons; groups are one object of several parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from ...errors import UserError
from ...files import shown
from ..reading import read_json
from .source import Collector, Source, count_hidden, images_by_stem, number, polygon_area, polygon_box, sub_files, whole

BYTES = 256 << 20
"""Largest file: LabelMe may store the image inside."""


def read(path: Path, image_root: Path | None = None, names: Sequence[str] | None = None) -> Source:
    """Read a folder of LabelMe's files, or one of them; images lie beside them.

    Raises:
        UserError: the first mistake.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    files = list(sub_files(folder, ".json")) if path.is_dir() else [path]
    root = Path(image_root) if image_root is not None else folder
    present = images_by_stem(root)
    collector = Collector(names)
    if path.is_dir():
        count_hidden(path, ".json", collector)
    for file in files:
        try:
            _read_file(file, collector, present)
        except UserError as error:
            collector.mistakes.append(str(error))
    return collector.source("labelme", root)


def _read_file(file: Path, collector: Collector, present: dict[str, str]) -> None:
    content = read_json(file, limit=BYTES)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise UserError(f"{shown(file)}: shapes: is not a list; this is no file of LabelMe's, take it out")
    given = content.get("imagePath")
    if given is not None and not isinstance(given, str):
        raise UserError(f"{shown(file)}: imagePath: {shown(given, 40)!r} is no text; write the image's name")
    given = (given or "").replace("\\", "/").rpartition("/")[2]
    name = given if given in present.values() else present.get(file.stem, given or f"{file.stem}.jpg")
    sizes = []
    for key in ("imageWidth", "imageHeight"):
        value = content.get(key)
        sizes.append(whole(value))
        if value is not None and sizes[-1] is None:
            collector.mistake(file, key, f"{shown(value, 40)!r} is no size", "write pixels, or leave it out")
    image_id = collector.image(name, *sizes)
    groups: dict[tuple, list[tuple[str, str, list[float]]]] = {}  # by (label, group or place)
    for index, shape in enumerate(shapes):
        place = f"shapes[{index}]"
        if not isinstance(shape, dict):
            collector.mistake(file, place, "is not an object", "remove it")
            continue
        kind = shape.get("shape_type") or "polygon"
        if kind not in ("rectangle", "polygon", "circle"):
            collector.left_out[f"shapes of kind {shown(kind, 20)} left out"] += 1
            continue
        points, label = shape.get("points"), shape.get("label")
        flat = [number(v) for p in points for v in p] if _pairs(points) else []
        least = 6 if kind == "polygon" else 4
        if len(flat) < least or not all(map(math.isfinite, flat)) or (kind != "polygon" and len(flat) != 4):
            collector.mistake(file, f"{place}.points", f"are no {kind}", "write [[x, y], ...] in pixels, draw it again")
            continue
        if not isinstance(label, str):
            collector.mistake(file, f"{place}.label", f"{shown(label, 40)!r} is no text", "name the class")
            continue
        if kind == "circle":
            radius = math.dist(flat[:2], flat[2:])
            flat = [flat[0] - radius, flat[1] - radius, flat[0] + radius, flat[1] + radius]
        group = shape.get("group_id")
        belongs = (label.strip(), place if group is None else f"group {group}")
        groups.setdefault(belongs, []).append((place, kind, flat))
    for (label, _), parts in groups.items():
        more = {}
        if all(kind == "polygon" for _, kind, _ in parts):
            polygons = [flat for *_, flat in parts]
            more = {"segmentation": polygons, "area": sum(map(polygon_area, polygons))}
        box = polygon_box([value for *_, flat in parts for value in flat])
        collector.object(file, parts[0][0], image_id, label, box, **more)


def _pairs(points: object) -> TypeGuard[list[list]]:
    return isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
