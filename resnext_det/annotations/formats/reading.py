"""Which format a file or folder is, by looking, and its reader."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ...errors import UserError
from ...files import looked_at, places_looked_at, read_regular, shown
from ..check import inspect_document, read_document
from . import cvat, labelme, voc, yolo
from .source import Source, is_image, root_tag, sub_files

FORMATS = ("coco", "yolo", "voc", "cvat", "labelme")


def recognize(path: str | Path) -> str:
    """The format of ``path``, one of :data:`FORMATS`.

    Raises:
        UserError: no such file, or none of the formats.
    """
    place, _ = _place_and_split(path)
    if place.is_dir():
        found = _folder_format(place)
    elif not place.is_file():
        raise UserError(f"{shown(place)}: no such file or folder; give labels of {', '.join(FORMATS)}")
    else:
        found = _file_format(place)
    if found is None:
        raise UserError(
            f"{shown(place)}: is none of COCO (JSON), YOLO (data.yaml, lists), VOC (XML, image sets), CVAT "
            "(annotations.xml) and LabelMe (JSON files); name the file or folder that holds the labels"
        )
    return found


def _place_and_split(path: str | Path) -> tuple[Path, str | None]:
    """``data.yaml:val`` is the split ``val`` of ``data.yaml``."""
    text, colon, split = str(path).rpartition(":")
    if colon and text.lower().endswith((".yaml", ".yml")):
        return Path(text), split
    return Path(path), None


def _file_format(path: Path) -> str | None:
    ending = path.suffix.lower()
    if ending == ".json":
        return "labelme" if _has_shapes(path) else "coco"
    if ending == ".xml":
        return {"annotations": "cvat", "annotation": "voc"}.get(root_tag(path, cvat.BYTES))
    if ending in (".yaml", ".yml"):
        return "yolo"
    if ending == ".txt":
        return "voc" if voc.is_image_set(path) else "yolo"
    return None


def _folder_format(folder: Path) -> str | None:
    if (folder / "annotations.xml").is_file():
        return "cvat"
    if (folder / "Annotations").is_dir():
        return "voc"
    if any((folder / name).is_file() for name in ("data.yaml", "data.yml")) or (folder / "labels").is_dir():
        return "yolo"
    xml = next(iter(sub_files(folder, ".xml")), None)
    if xml is not None:
        return "voc"
    if _coco_sets(folder):
        return "coco"
    files = list(sub_files(folder, ".json"))
    if files:
        return "labelme" if any(_has_shapes(file) for file in files[:3]) else "coco" if len(files) == 1 else None
    texts = list(sub_files(folder, ".txt"))
    if texts or (folder.name == "images" and any(is_image(p.name) for p in folder.iterdir())):
        return "yolo"
    return "yolo" if "images" in folder.parts and looked_at(Path(*_swapped(folder.parts))).is_dir() else None


def _coco_sets(folder: Path) -> dict[str, Path]:
    """{split: its file} of ``annotations/instances_SPLIT.json``, with or without that folder; else Roboflow's files."""
    for place in (folder / "annotations", folder):
        found = {p.stem.removeprefix("instances_"): p for p in looked_at(place).glob("instances_*.json")}
        kept = {name: path for name, path in found.items() if (folder / name).is_dir()}
        if found:
            return dict(sorted((kept or found).items()))
    exports = [looked_at(p / "_annotations.coco.json") for p in sorted(folder.iterdir()) if p.is_dir()]
    return {p.parent.name: p for p in exports if p.exists()}


def _coco_images(file: Path, document: dict) -> Path:
    """The folder among the usual ones that holds the first image; where none does, the file's own."""
    split, above = file.stem.removeprefix("instances_"), file.parent.parent
    places = (file.parent, file.parent / split, above / split, above / "images" / split, above / "images", above)
    try:
        return next(folder for folder in places if (folder / document["images"][0]["file_name"]).is_file())
    except (TypeError, KeyError, IndexError, ValueError, OSError, StopIteration):  # the check says what is wrong
        return file.parent


def _swapped(parts: Sequence[str]) -> list[str]:
    last = max(i for i, part in enumerate(parts) if part == "images")
    return ["labels" if i == last else part for i, part in enumerate(parts)]


def _has_shapes(path: Path) -> bool:
    """Whether this is LabelMe's: it has ``shapes`` and no ``images``. COCO's large files are not read for it."""
    try:
        data = read_regular(path, labelme.BYTES)
        content = json.loads(data) if b'"shapes"' in data else {}
    except (ValueError, RecursionError, UserError):  # a pipe, too large; who reads it says so
        return False
    return isinstance(content, dict) and "shapes" in content and "images" not in content


@lru_cache(maxsize=8)
def _cached(path: str, image_root: str | None, names: tuple[str, ...] | None) -> Source:
    since = time.time_ns()
    with places_looked_at() as places:
        source = _read(path, Path(image_root) if image_root else None, names)
    source.places, source.since = places, since
    return source


def _read(path: str, root: Path | None, names: Sequence[str] | None) -> Source:
    place, split = _place_and_split(path)
    looked_at(place)
    found = recognize(path)
    if found == "coco":
        file = next(iter([*_coco_sets(place).values(), *sub_files(place, ".json")])) if place.is_dir() else place
        document = read_document(file)
        return Source("coco", document, str(root or _coco_images(file, document)))
    if found == "yolo":
        if place.is_dir():
            place = next((place / n for n in ("data.yaml", "data.yml") if (place / n).is_file()), place)
        return yolo.read(place, root, names, split)
    reader = {"voc": voc.read, "cvat": cvat.read, "labelme": labelme.read}[found]
    return reader(place, root, names)


def read(path: str | Path, image_root: str | Path | None = None, names: Sequence[str] | None = None) -> Source:
    """Read labels of any of :data:`FORMATS` into COCO's form; what was read once is kept.

    Args:
        path: a file or folder, or ``data.yaml:val`` for a split of YOLO's.
        image_root: folder of the images; by default where the format keeps them.
        names: the classes, where the format does not list them.

    Raises:
        UserError: one line for the first mistake, and how many more there are.
    """
    source = _cached(str(path), str(image_root) if image_root else None, tuple(names) if names else None)
    for place in source.places:
        looked_at(place)
    return source


def forget() -> None:
    """Give back the memory of what :func:`read` keeps."""
    _cached.cache_clear()


def read_checked(path: str | Path, image_root: str | Path | None = None) -> Source:
    """:func:`read`, and the check that training makes of every set; the records are as fixed there.

    Raises:
        UserError: the first error.
    """
    source = read(path, image_root)
    found = inspect_document(source.document, path, source.image_root, decode=False)
    found.raise_errors()
    return Source(source.format, found.fixed(), source.image_root, source.notes)


def splits_of(path: str | Path) -> dict[str, str]:
    """{split: its path for :func:`read`} of a folder or file; the only one is called ``train``."""
    place, split = _place_and_split(path)
    found = recognize(path)
    if found == "coco" and place.is_dir() and (sets := _coco_sets(place)):
        return {name: str(file) for name, file in sets.items()}
    if found == "yolo" and split is None:
        file = (
            place
            if place.is_file()
            else next((f for f in (place / "data.yaml", place / "data.yml") if f.is_file()), None)
        )
        if file is not None and file.suffix.lower() in (".yaml", ".yml") and (names := yolo.splits_of(file)):
            return {name: f"{file}:{name}" for name in names}
    if found == "voc" and (place / "ImageSets" / "Main").is_dir():
        main = place / "ImageSets" / "Main"
        lists = {
            name: str(main / f"{name}.txt") for name in ("train", "val", "test") if (main / f"{name}.txt").is_file()
        }
        if lists:
            return lists
    return {split or (place.stem if not place.is_dir() and found == "voc" else "train"): str(path)}
