"""YOLO: ``data.yaml`` as Ultralytics and Roboflow write it, darknet's lists, and folders ``images`` and ``labels``.

A label file has a line for each object: class, then the box's center and size, or a polygon, as parts of the image's
sides. Image ``images/train/a.jpg`` has the labels ``labels/train/a.txt``; no file means no objects.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from ...config_files import read_yaml
from ...errors import UserError
from ...files import expanded, looked_at, shown
from ...images import read_header
from .source import Collector, Source, is_image, polygon_area, polygon_box, read_text

SPLITS = ("train", "val", "test")
OUTSIDE = 0.01
"""Part of a side by which a coordinate may leave 0 ... 1: rounding."""


def read(
    path: Path, image_root: Path | None = None, names: Sequence[str] | None = None, split: str | None = None
) -> Source:
    """Read ``data.yaml``, a darknet list of images, or a folder of images (with ``labels`` where ``images`` stands).

    Args:
        split: ``train``, ``val`` or ``test`` of ``data.yaml``; with the only one by default. ``data.yaml:val`` is the
            same as the path ``data.yaml`` with the split ``val``.
        names: the classes; else those of ``data.yaml``, ``classes.txt`` or ``*.names`` beside the labels.

    Raises:
        UserError: the first mistake.
    """
    path = Path(path)
    where, keypoints = str(path), None
    if path.suffix.lower() in (".yaml", ".yml"):
        data, base = _data(path)
        names = names or _names(path, data)
        keypoints = _keypoints(path, data)
        files = _split_images(path, data, base, split)
    else:
        base = path if path.is_dir() else path.parent
        if names is None:
            names, where = _listed_names(base)
        files = _folder_images(path) if path.is_dir() else _list_images(path, base)
    root = Path(image_root) if image_root is not None else Path(os.path.commonpath([f.parent for f in files] or [base]))
    collector = Collector(names, where)
    for file in files:
        try:
            _read_image(file, root, collector, names, keypoints)
        except UserError as error:
            collector.mistakes.append(str(error))
    return collector.source("yolo", root)


def splits_of(path: Path) -> list[str]:
    """The splits that ``data.yaml`` names."""
    data, _ = _data(path)
    return [name for name in SPLITS if data.get(name) or (name == "val" and data.get("valid"))]


def _data(path: Path) -> tuple[dict, Path]:
    data = read_yaml(path, "labels")
    if not isinstance(data, dict):
        raise UserError(f"{shown(path)}: holds no keys; write names and train, val as Ultralytics does")
    base = data.get("path") or "."
    if not isinstance(base, str):
        raise UserError(f"{shown(path)}: path: {shown(base, 40)!r} is no folder; write the folder, or leave it out")
    folder = path.parent / _expanded(base)
    return data, folder if os.path.isdir(looked_at(folder)) else path.parent


def _expanded(path: str) -> str:
    return expanded(looked_at(path) if "$" in path else path)  # another value of the variable is another set


def _names(path: Path, data: dict) -> list[str]:
    names = data.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{shown(path)}: names: the numbers are not 0 ... {len(names) - 1}; number them so")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise UserError(f"{shown(path)}: names: is not a list of class names; write names: [cat, dog]")
    count = data.get("nc", len(names))
    if count != len(names):
        raise UserError(f"{shown(path)}: nc: is {shown(count, 20)} and names has {len(names)}; make them equal")
    return _unique(path, [str(name) for name in names])


def _keypoints(path: Path, data: dict) -> int | None:
    """How many numbers the keypoints of an object are, as ``kpt_shape: [points, 2 or 3]`` says; None without it."""
    shape = data.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(v) is int and v > 0 for v in shape):
        raise UserError(f"{shown(path)}: kpt_shape: {shown(shape, 40)!r} is not [points, 2 or 3]; write that")
    return shape[0] * shape[1]


def _unique(path: Path, names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{shown(path)}: names: {shown(twice, 60)!r} stands there twice; rename one")
    return names


def _listed_names(folder: Path) -> tuple[list[str], str]:
    for place in (folder, folder.parent, folder.parent.parent, *(p / "labels" for p in (folder, folder.parent))):
        for file in [place / "classes.txt", *sorted(looked_at(place).glob("*.names")), place / "labels.txt"]:
            if looked_at(file).is_file():
                lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
                return _unique(file, lines), str(file)
    raise UserError(f"{shown(folder)}: no list of classes beside it; write classes.txt, one name on a line")


def _split_images(path: Path, data: dict, base: Path, split: str | None) -> list[Path]:
    given = {name: data[name] for name in SPLITS if data.get(name)}
    if "valid" in data and "val" not in given:
        given["val"] = data["valid"]
    if split is None:
        if len(given) > 1:
            choice = ", ".join(f"{path.name}:{name}" for name in given)
            raise UserError(f"{shown(path)}: has the splits {', '.join(given)}; choose one: {choice}")
        split = next(iter(given), "train")
    if split not in given:
        raise UserError(f"{shown(path)}: {shown(split, 40)}: no such split; it has {', '.join(given) or 'none'}")
    entries = given[split] if isinstance(given[split], list) else [given[split]]
    files: list[Path] = []
    for entry in entries:
        if not isinstance(entry, str):
            raise UserError(f"{shown(path)}: {split}: {shown(entry, 60)!r} is no folder or list; write its path")
        # Roboflow writes ../train/images, and the folder is train/images beside the file.
        entry = _expanded(entry)
        tries = [base / entry, path.parent / entry, base / entry.removeprefix("../")]
        there = (place for place in tries if os.path.exists(looked_at(place)))  # Path.exists raises for long names
        place = next(there, None)
        if place is None:
            raise UserError(f"{shown(path)}: {split}: {shown(entry, 100)}: no such folder or list below {shown(base)}")
        files += _folder_images(place) if place.is_dir() else _list_images(place, base)
    return files


def _folder_images(folder: Path) -> list[Path]:
    if looked_at(folder / "images").is_dir():
        folder = folder / "images"
    entries = sorted(folder.rglob("*"))
    for place in (folder, *(entry for entry in entries if not is_image(entry.name) and entry.is_dir())):
        looked_at(place)
    files = [entry for entry in entries if is_image(entry.name) and not entry.name.startswith(".")]
    if not files:
        raise UserError(f"{shown(folder)}: holds no images; give the folder of the images")
    return files


def _list_images(path: Path, base: Path) -> list[Path]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    wrong = next((line for line in lines if not is_image(line)), None)
    if not lines or wrong is not None:
        what = f"{shown(wrong, 60)!r} names no image" if lines else "lists no image"
        raise UserError(f"{shown(path)}: {what}; write one image on a line")
    files = []
    for line in lines:
        tries = [path.parent / line, base / line, Path(line)]
        files.append(next((place for place in tries if os.path.isfile(looked_at(place))), path.parent / line))
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{shown(path)}: {shown(missing[0])}{more}: no such file; correct the list")
    return [Path(os.path.normpath(file)) for file in files]


def _labels_of(image: Path) -> Path:
    """The label file: beside the image, or with ``labels`` for the last ``images`` in its path."""
    parts = list(image.parts)
    places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
        other = Path(*parts).with_suffix(".txt")
        if looked_at(other).exists() or not looked_at(image.with_suffix(".txt")).exists():
            return other
    return looked_at(image.with_suffix(".txt"))


def _read_image(
    image: Path, root: Path, collector: Collector, names: Sequence[str], keypoints: int | None = None
) -> None:
    header = read_header(image)
    try:
        name = image.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise UserError(f"{shown(image)}: lies outside the image folder {shown(root)}; name a folder above") from None
    image_id = collector.image(name, header.width, header.height)
    labels = _labels_of(image)
    if not labels.exists():
        return
    seen: set[str] = set()
    for index, line in enumerate(read_text(labels).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        place = f"line {index}"
        if " ".join(words) in seen:
            collector.left_out["repeated lines left out"] += 1
            continue
        seen.add(" ".join(words))
        try:
            values = [float(word) for word in words]
        except ValueError:
            collector.mistake(labels, place, f"{shown(line, 60)!r} is not numbers", "write class x y width height")
            continue
        kind, *rest = values
        if not math.isfinite(kind) or kind != math.floor(kind) or not 0 <= kind < len(names):
            fix = f"there are {len(names)} names, counted from 0"
            collector.mistake(labels, place, f"class {shown(words[0], 20)} is not in the list", fix)
            continue
        if not all(map(math.isfinite, rest)):
            collector.mistake(labels, place, "holds NaN or infinity", "correct it")
            continue
        if any(value > 1 + OUTSIDE or value < -OUTSIDE for value in (rest if keypoints is None else rest[:4])):
            text = "is no part of the image's sides: pixels?" if max(rest) > 2 else "leaves the image"
            collector.mistake(labels, place, f"{shown(line, 60)!r} {text}", "write parts of 0 to 1")
            continue
        if len(rest) == 4 or len(rest) - 4 == keypoints:
            x, y, w, h = rest[:4]
            collector.left_out["objects' keypoints left out, their boxes kept"] += len(rest) > 4
            box = [(x - w / 2) * header.width, (y - h / 2) * header.height, w * header.width, h * header.height]
            collector.object(labels, place, image_id, names[int(kind)], box)
        elif keypoints is None and len(rest) >= 6 and len(rest) % 2 == 0:
            points = [v * (header.height if i % 2 else header.width) for i, v in enumerate(rest)]
            box, area = polygon_box(points), polygon_area(points)
            collector.object(labels, place, image_id, names[int(kind)], box, segmentation=[points], area=area)
        else:
            what = f"{len(words)} numbers are neither a box nor a polygon"
            fix = "write class x y width height, or class x1 y1 x2 y2 x3 y3 ...; for keypoints kpt_shape in data.yaml"
            if keypoints is not None:
                what = f"{len(words)} numbers are not {5 + keypoints}: class, box and keypoints (kpt_shape)"
                fix = "correct the line, or kpt_shape in data.yaml"
            collector.mistake(labels, place, what, fix)
