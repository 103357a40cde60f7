"""Write COCO's minival and valminusminival (35k) from val2014, and prove that minival is val2017.

The paper trains on train2014 and the 35k, and tests on the 5,000 images of minival (Table 8). Those were published
again as val2017 under other file names, so its ids say which they are. Reads, in one folder,

    instances_val2014.json              of annotations_trainval2014.zip
    instances_val2017.json              of annotations_trainval2017.zip

and writes beside them, with val2014's records and file names,

    instances_minival2014.json          detectron2's coco_2014_minival
    instances_valminusminival2014.json  detectron2's coco_2014_valminusminival
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..annotations.reading import read_json
from ..errors import UserError
from ..files import COUNT, atomic_write, misfit

ARCHIVES = {
    "instances_val2014.json": "annotations_trainval2014.zip",
    "instances_val2017.json": "annotations_trainval2017.zip",
}
MINIVAL = "instances_minival2014.json"
REST = "instances_valminusminival2014.json"
IMAGES = 5000
_INSTANCES = {
    "images": [{"id": COUNT, "width": COUNT, "height": COUNT}],
    "annotations": [{"id": COUNT, "image_id": COUNT, "category_id": COUNT, "iscrowd": COUNT, "bbox": [float] * 4}],
}
TOLERANCE = 0.01  # pixels: the two publications may round a coordinate differently


@dataclass(frozen=True)
class Counts:
    """Images and annotations of the two parts."""

    minival_images: int
    minival_annotations: int
    rest_images: int
    rest_annotations: int


def split_val2014(val2014: dict, val2017: dict) -> tuple[dict, dict]:
    """(minival, the rest): ``val2014`` in COCO form parted by the image ids of ``val2017``.

    Raises:
        UserError: an image or annotation of val2017 is not in val2014, or is another one there.
    """
    wanted = {image["id"] for image in val2017["images"]}
    parts = []
    for inside in (True, False):
        part = {key: value for key, value in val2014.items() if key not in ("images", "annotations")}
        part["images"] = [x for x in val2014["images"] if (x["id"] in wanted) == inside]
        part["annotations"] = [x for x in val2014["annotations"] if (x["image_id"] in wanted) == inside]
        parts.append(part)
    require_same(parts[0], val2017)
    return parts[0], parts[1]


def require_same(minival: dict, val2017: dict) -> None:
    """Prove that both hold the same images (ids, sizes) and the same objects (ids, image, category, crowd, box).

    File names are not compared: they are what differs.

    Raises:
        UserError: the first difference.
    """
    for part, facts in (("images", _image_facts), ("annotations", _object_facts)):
        ours, theirs = ({x["id"]: x for x in coco[part]} for coco in (minival, val2017))
        if odd := sorted(ours.keys() ^ theirs.keys()):
            where = "val2017" if odd[0] in theirs else "val2014"
            raise UserError(f"{part} id {odd[0]} ({len(odd)} such): only in {where}; fetch both archives again")
        for i, record in theirs.items():
            if not _equal(facts(ours[i]), facts(record)):
                raise UserError(
                    f"{part} id {i}: val2014 has {facts(ours[i])}, val2017 has {facts(record)}; "
                    "one of the files was changed, fetch both archives again"
                )


def _image_facts(image: dict) -> list:
    return [image["width"], image["height"]]


def _object_facts(annotation: dict) -> list:
    return [annotation["image_id"], annotation["category_id"], annotation["iscrowd"], *annotation["bbox"]]


def _equal(a: list, b: list) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= TOLERANCE for x, y in zip(a, b, strict=True))


def make_minival(folder: Path | str, images: int = IMAGES) -> Counts:
    """Write both files into ``folder``; see the module's docstring.

    Files that are there already are kept if they hold the right images.

    Args:
        folder: COCO's ``annotations``.
        images: how many images minival must have.

    Raises:
        UserError: a file is missing or broken, the proof fails, or another file stands where one is to be written.
    """
    folder = Path(folder)
    val2014, val2017 = (_read(folder / name) for name in ARCHIVES)
    if len(val2017["images"]) != images:
        found = len(val2017["images"])
        raise UserError(f"{folder / 'instances_val2017.json'}: holds {found:,} images, not {images:,}; fetch it again")
    parts = split_val2014(val2014, val2017)
    missing = []
    for name, part in zip((MINIVAL, REST), parts, strict=True):
        file = folder / name
        if not file.exists():
            missing.append((file, part))
        elif _ids(_read(file)) != _ids(part):
            raise UserError(f"{file}: is there and holds other images or annotations; move it away")
    for file, part in missing:
        with atomic_write(file) as out:
            out.write(json.dumps(part))
    return Counts(*(len(part[key]) for part in parts for key in ("images", "annotations")))


def _ids(coco: dict) -> tuple[set, set]:
    return {x["id"] for x in coco["images"]}, {x["id"] for x in coco["annotations"]}


def _read(file: Path) -> dict:
    if not file.is_file():
        archive = ARCHIVES.get(file.name)
        raise UserError(f"{file}: missing; it is in {archive}, published at cocodataset.org under Download")
    try:
        content = read_json(file)
        reason = misfit(content, _INSTANCES)
    except UserError as error:
        reason = str(error)
    if reason:
        raise UserError(f"{file}: not a whole COCO instances file ({reason}); fetch it again")
    return content
