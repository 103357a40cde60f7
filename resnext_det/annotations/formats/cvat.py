"""CVAT for images 1.1: one ``annotations.xml`` with boxes, polygons and what detectors cannot use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ...files import looked_at, shown
from .source import Collector, Source, number, polygon_area, polygon_box, read_xml, whole

BYTES = 1 << 30
"""Largest annotations.xml."""

UNUSED = ("polyline", "points", "mask", "cuboid", "skeleton", "ellipse", "tag")


def read(path: Path, image_root: Path | None = None, names: Sequence[str] | None = None) -> Source:
    """Read ``annotations.xml`` or the folder that holds it; images are in ``images`` beside it, else beside it.

    Raises:
        UserError: the first mistake.
    """
    path = Path(path) / "annotations.xml" if Path(path).is_dir() else Path(path)
    root = read_xml(path, BYTES)
    if root.tag != "annotations":
        raise UserError(f"{shown(path)}: its root is <{shown(root.tag, 40)}>, not <annotations>; export CVAT 1.1")
    if root.find("track") is not None:
        raise UserError(f"{shown(path)}: holds tracks, CVAT for video; export it as CVAT for images 1.1")
    if image_root is None:
        image_root = path.parent / "images" if looked_at(path.parent / "images").is_dir() else path.parent
    listed = [(label.findtext("name") or "").strip() for label in root.iterfind("./meta//labels/label")]
    collector = Collector(names or [name for name in dict.fromkeys(listed) if name] or None, str(path))
    seen: set[str] = set()
    for position, image in enumerate(root.findall("image")):
        name = image.get("name", "")
        here = f"image {image.get('id', position)}"
        if not name:
            collector.mistake(path, f"{here}.name", "is missing", "name the image")
            continue
        if name in seen:
            collector.mistake(path, here, f"{shown(name, 60)!r} stands there twice", "keep one of them")
            continue
        seen.add(name)
        sizes = []
        for key in ("width", "height"):
            sizes.append(whole(image.get(key, "")))
            if image.get(key) and sizes[-1] is None:
                collector.mistake(path, f"{here}.{key}", f"{shown(image.get(key), 40)!r} is no size", "write pixels")
        image_id = collector.image(name, *sizes)
        for index, shape in enumerate(image, start=1):
            place = f"{here}, shape {index} ({shown(shape.tag, 20)})"
            if shape.tag in UNUSED:
                collector.left_out[f"shapes of kind {shape.tag} left out"] += 1
            elif shape.get("outside") == "1":
                collector.left_out["shapes marked as outside left out"] += 1
            elif number(shape.get("rotation", "0")) != 0:
                collector.left_out["rotated boxes left out"] += 1
            elif shape.tag == "box":
                x1, y1, x2, y2 = (number(shape.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr"))
                label = shape.get("label", "").strip()
                collector.object(path, place, image_id, label, (x1, y1, x2 - x1, y2 - y1))
            elif shape.tag == "polygon":
                points = [number(v) for pair in shape.get("points", "").split(";") for v in pair.split(",")]
                if len(points) < 6 or len(points) % 2 or not all(map(math.isfinite, points)):
                    collector.mistake(path, f"{place}.points", "are not three or more points", "draw it again")
                    continue
                more = {"segmentation": [points], "area": polygon_area(points)}
                collector.object(path, place, image_id, shape.get("label", "").strip(), polygon_box(points), **more)
            else:
                collector.mistake(path, place, "is no shape of CVAT for images 1.1", "export it again")
    return collector.source("cvat", image_root)
