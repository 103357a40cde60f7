"""Pascal VOC: VOCdevkit's folders with image sets, and flat folders of XML files.

Boxes are corners of pixels counted from 1, both inclusive: ``xmin 1, xmax 1`` is one pixel wide. In COCO's form that
is ``x = xmin - 1`` and ``width = xmax - xmin + 1``, as detectron2 reads them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from ...errors import UserError
from ...files import looked_at, shown
from .source import Collector, Source, count_hidden, images_by_stem, number, read_text, read_xml, sub_files, whole

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty of VOC2007 to VOC2012; a folder of that name must hold no others."""

LISTS = ("labels.txt", "classes.txt", "predefined_classes.txt")
"""Files beside the labels that list the classes, one on a line."""

SPLITS = ("train", "val", "valid", "validation", "trainval", "test")


def is_image_set(path: Path) -> bool:
    """Whether this is one of VOC's lists of images: ``ImageSets/Main/train.txt`` beside ``Annotations``."""
    return path.suffix == ".txt" and len(path.parents) > 2 and looked_at(path.parents[2] / "Annotations").is_dir()


def metric_year(path: str | Path) -> int:
    """2007 (the metric of eleven points) for the folder VOC2007 and all below it; 2012 for others."""
    return 2007 if "VOC2007" in Path(path).parts else 2012


def read(path: Path, image_root: Path | None = None, names: Sequence[str] | None = None) -> Source:
    """Read an image set, a VOCdevkit folder such as ``VOC2007`` (all its XML files), a flat folder, or one XML file.

    The classes are ``names``. Without them: those of a list beside the labels; else the twenty, in a folder
    ``VOC20xx``; else all names in the whole folder, sorted, so that every split has the same.

    Raises:
        UserError: the first mistake: a missing or broken XML file, a class absent from the list, an unusable box.
    """
    path = Path(path)
    if path.is_dir():
        root = path
        labels = path / "Annotations" if (path / "Annotations").is_dir() else path
        files = list(sub_files(labels, ".xml"))
    elif path.suffix.lower() == ".xml":
        root = labels = path.parent
        files = [path]
    else:
        root = path.parents[2]
        labels = root / "Annotations"
        files = [labels / f"{stem}.xml" for stem in _stems(path)]
    if image_root is None:
        image_root = next((root / n for n in ("JPEGImages", "images") if looked_at(root / n).is_dir()), labels)
    where = ""
    if names is None:
        names, where = _listed(root, labels)
    if names is None:
        names = _names_of(labels, files)
        where = str(labels)
    collector = Collector(names, where)
    if path.is_dir():
        count_hidden(labels, ".xml", collector)
    present = images_by_stem(Path(image_root))
    for file in files:
        try:
            _read_file(file, collector, present)
        except UserError as error:
            hint = f" (named by {shown(path)})" if not path.is_dir() and not os.path.exists(file) else ""
            collector.mistakes.append(f"{error}{hint}")
    return collector.source("voc", image_root)


def _stems(path: Path) -> list[str]:
    stems = []
    for line_number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) > 1:
            raise UserError(
                f"{shown(path)}: line {line_number}: {shown(line, 60)!r} has {len(words)} columns, it lists one class; "
                "give the list of all images, such as train.txt"
            )
        if "/" in line or "\\" in line or words[0].startswith("."):
            raise UserError(f"{shown(path)}: line {line_number}: {shown(line, 60)!r} is a path; write names without it")
        stems.append(words[0])
    if not stems:
        raise UserError(f"{shown(path)}: lists no image; write one name on a line")
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else ()
    if twice:
        raise UserError(f"{shown(path)}: lists {shown(min(twice))} more than once; list each image once")
    return stems


def _listed(root: Path, labels: Path) -> tuple[list[str] | None, str]:
    for folder in dict.fromkeys((labels, root, root.parent)):
        for name in LISTS:
            if looked_at(folder / name).is_file():
                lines = [line.strip() for line in read_text(folder / name).splitlines() if line.strip()]
                return lines, str(folder / name)
    if root.name.startswith("VOC20"):
        return list(CLASSES), "VOC's twenty classes"
    return None, ""


def _names_of(labels: Path, files: Sequence[Path]) -> list[str]:
    """All class names in the folder, and in the other splits' folders beside a flat one."""
    folders = [labels]
    if labels.name.lower() in SPLITS:
        folders = [labels.parent / name for name in SPLITS if looked_at(labels.parent / name).is_dir()]
    names: set[str] = set()
    for file in dict.fromkeys([*files, *(file for folder in folders for file in sub_files(folder, ".xml"))]):
        try:
            names |= {_text(o, "name") for o in read_xml(file).findall("object")}
        except UserError:  # reported where it is read
            continue
    return sorted(names - {""})


def _text(element: Element, tag: str) -> str:
    found = element.find(tag)
    return "" if found is None or found.text is None else found.text.strip()


def _read_file(file: Path, collector: Collector, present: dict[str, str]) -> None:
    if not os.path.exists(file):  # False for a name that no file can have, where Path.exists raises
        raise UserError(f"{shown(file)}: no such file; add it or take its name from the image set")
    root = read_xml(file)
    if root.tag != "annotation":
        raise UserError(f"{shown(file)}: its root is <{shown(root.tag, 40)}>, not <annotation>; give VOC's XML")
    name = present.get(file.stem)
    if name is None:
        given = _text(root, "filename").replace("\\", "/").rpartition("/")[2]
        name = given if given in present.values() else given if file.stem in given else f"{file.stem}.jpg"
    size = [_text(root, f"size/{key}") for key in ("width", "height")]
    for key, text in zip(("width", "height"), size, strict=True):
        if text not in ("", "0") and whole(text) is None:
            collector.mistake(file, f"size.{key}", f"{shown(text, 40)!r} is no size", "write pixels, or leave it out")
    image_id = collector.image(name, whole(size[0]), whole(size[1]))
    for index, found in enumerate(root.findall("object"), start=1):
        place = f"object {index}"
        flags = {}
        for key in ("difficult", "truncated"):
            text = _text(found, key)
            if text not in ("", "0", "1") and text.lower() not in ("unspecified", "true", "false"):
                collector.mistake(file, f"{place}.{key}", f"{shown(text, 40)!r} is not 0 or 1", "write 0 or 1")
            flags[key] = int(text.lower() in ("1", "true"))
        if found.find("robndbox") is not None:
            collector.left_out["rotated boxes (robndbox) left out"] += 1
            continue
        box = found.find("bndbox")
        if box is None:
            collector.mistake(file, place, "has no bndbox", "add it or remove the object")
            continue
        corners = [number(_text(box, key)) for key in ("xmin", "ymin", "xmax", "ymax")]
        bad = [k for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True) if not abs(v) < 1e9]
        if bad:
            text = shown(_text(box, bad[0]), 40)
            collector.mistake(file, f"{place}.{bad[0]}", f"{text!r} is no number", "write pixels, counted from 1")
            continue
        x, y = corners[0] - 1, corners[1] - 1
        if -1 <= min(x, y) < 0:
            collector.left_out["boxes begin at 0, before VOC's first pixel 1: read as 1"] += 1
            x, y = max(x, 0.0), max(y, 0.0)
        if corners[2] < corners[0] or corners[3] < corners[1]:
            text = " ".join(f"{value:g}" for value in corners)
            collector.mistake(file, f"{place}.bndbox", f"{text} ends before it begins", "write xmin ymin xmax ymax")
            continue
        collector.object(file, place, image_id, _text(found, "name"), (x, y, corners[2] - x, corners[3] - y), **flags)
