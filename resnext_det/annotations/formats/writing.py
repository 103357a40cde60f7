"""A document in COCO's form written as COCO, YOLO or Pascal VOC, its images beside it."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import yaml

from ...errors import UserError
from ...files import is_file, place_in_shard, read_regular, shown
from ...images import MAX_IMAGE_BYTES, read_header
from .. import LABEL_FORMATS
from .source import Source


def write(sources: Mapping[str, Source], out: Path, to: str) -> list[str]:
    """Write each split of ``sources`` into the folder ``out``, the images linked hard, or copied, into it.

    Returns:
        What the form cannot hold, a sentence each.

    Raises:
        UserError: splits with different classes, two images of one name, a missing image.
    """
    if to not in LABEL_FORMATS:
        raise UserError(f"--to {shown(to, 40)}: choose from {', '.join(LABEL_FORMATS)}")
    first = next(iter(sources.values())).document["categories"]
    for split, source in sources.items():
        if source.document["categories"] != first:
            raise UserError(f"{split}: its classes are not those of {next(iter(sources))}; list the classes in a file")
    lost: Counter[str] = Counter()
    {"coco": _write_coco, "yolo": _write_yolo, "voc": _write_voc}[to](sources, out, first, lost)
    return [f"{number} {what}" for what, number in lost.items()]


def _place(root: str, name: str, target: Path) -> Path:
    """The image in its new place."""
    here = Path(root) / name
    if ".." in Path(name).parts or Path(name).is_absolute() or not is_file(here):
        raise UserError(f"{shown(here)}: no such image below {shown(root)}; correct the image folder")
    if os.path.exists(target):
        raise UserError(f"{shown(target.name)}: two images would have this name; rename one")
    target.parent.mkdir(parents=True, exist_ok=True)
    if place_in_shard(here):
        target.write_bytes(read_regular(here, MAX_IMAGE_BYTES))
        return target
    try:
        os.link(here.resolve(), target)
    except OSError:
        shutil.copyfile(here, target)
    return target


def _name(image: dict) -> str:
    """Of the image's file in its new place: that of a file in a shard is no file's."""
    name = image["file_name"]
    shard, _, own = name.rpartition("/")
    return f"{shard.removesuffix('.tar')}/{own.split('-', 2)[2]}" if place_in_shard(name) else name


def _by_image(document: dict) -> dict[int, list[dict]]:
    found = defaultdict(list)
    for record in document.get("annotations", ()):
        found[record["image_id"]].append(record)
    return found


def _write_coco(sources: Mapping[str, Source], out: Path, categories: list[dict], lost: Counter) -> None:
    for split, source in sources.items():
        for image in source.document["images"]:
            _place(source.image_root, image["file_name"], out / split / _name(image))
        file = out / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        named = [{**image, "file_name": _name(image)} for image in source.document["images"]]
        file.write_text(json.dumps({**source.document, "images": named}), encoding="utf-8")


def _write_yolo(sources: Mapping[str, Source], out: Path, categories: list[dict], lost: Counter) -> None:
    numbers = {category["id"]: number for number, category in enumerate(categories)}
    for split, source in sources.items():
        objects = _by_image(source.document)
        for image in source.document["images"]:
            target = _place(source.image_root, image["file_name"], out / "images" / split / _name(image))
            width, height = _size(image, target)
            lines = []
            for record in objects[image["id"]]:
                if record.get("iscrowd"):
                    lost["crowds left out"] += 1
                    continue
                polygons = record.get("segmentation") or []
                if isinstance(polygons, list) and len(polygons) == 1:
                    parts = [v / (height if i % 2 else width) for i, v in enumerate(polygons[0])]
                else:
                    lost["masks left out, their boxes kept"] += bool(polygons)
                    x, y, w, h = record["bbox"]
                    parts = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
                lost["marks difficult left out"] += bool(record.get("difficult"))
                lines.append(" ".join([str(numbers[record["category_id"]]), *(f"{part:.8f}" for part in parts)]))
            file = out / "labels" / split / Path(_name(image)).with_suffix(".txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    data: dict = {split: f"images/{split}" for split in sources}
    data["names"] = {number: category["name"] for number, category in enumerate(categories)}
    (out / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for what in [what for what, number in lost.items() if not number]:
        del lost[what]


def _write_voc(sources: Mapping[str, Source], out: Path, categories: list[dict], lost: Counter) -> None:
    names = {category["id"]: category["name"] for category in categories}
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for split, source in sources.items():
        objects, stems = _by_image(source.document), []
        for image in source.document["images"]:
            flat = _name(image).replace("/", "_")
            stem = Path(flat).stem
            if (out / "Annotations" / f"{stem}.xml").exists():
                raise UserError(f"{shown(image['file_name'])}: two images would be {shown(stem)}.xml; rename one")
            if any(c.isspace() for c in stem):
                raise UserError(f"{shown(image['file_name'])}: VOC's lists take no spaces in names; rename it")
            target = _place(source.image_root, image["file_name"], out / "JPEGImages" / flat)
            root = ET.Element("annotation")
            ET.SubElement(root, "folder").text = "JPEGImages"
            ET.SubElement(root, "filename").text = flat
            size = ET.SubElement(root, "size")
            for key, value in zip(("width", "height", "depth"), (*_size(image, target), 3), strict=True):
                ET.SubElement(size, key).text = str(value)
            for record in objects[image["id"]]:
                if record.get("iscrowd"):
                    lost["crowds left out"] += 1
                    continue
                if record.get("segmentation"):
                    lost["masks left out, their boxes kept"] += 1
                found = ET.SubElement(root, "object")
                ET.SubElement(found, "name").text = names[record["category_id"]]
                ET.SubElement(found, "pose").text = "Unspecified"
                for key in ("truncated", "difficult"):
                    ET.SubElement(found, key).text = str(int(bool(record.get(key))))
                x, y, w, h = record["bbox"]
                box = ET.SubElement(found, "bndbox")
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True):
                    ET.SubElement(box, key).text = f"{round(value, 4):.10g}"
            ET.indent(root)
            ET.ElementTree(root).write(out / "Annotations" / f"{stem}.xml", encoding="utf-8")
            stems.append(stem)
        (out / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{s}\n" for s in stems), encoding="utf-8")
    (out / "labels.txt").write_text("".join(f"{name}\n" for name in names.values()), encoding="utf-8")


def _size(image: dict, file: Path) -> tuple[int, int]:
    if image.get("width") and image.get("height"):
        return image["width"], image["height"]
    header = read_header(file)
    return header.width, header.height
