"""What every reader returns and uses: mistakes in one line, safe XML, images by their stems."""

from __future__ import annotations

import hashlib
import math
import os
import stat
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError, nearest
from ...files import expanded, looked_at, open_regular, read_regular, shown
from ..column_file import digest_of

TEXT_BYTES = 16 << 20
"""Largest list, label file or XML file of one image."""

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".avif", ".mpo")
"""Endings of images, the likelier ones first."""


@dataclass
class Source:
    """A labeled set in COCO's form.

    Attributes:
        format: one of :data:`~resnext_det.annotations.formats.FORMATS`.
        document: ``images``, ``annotations`` (boxes ``x, y, width, height``) and ``categories``.
        image_root: the folder that ``file_name`` is relative to.
        notes: what was left out or read otherwise, a sentence each.
        places: all that was looked at to read it, for :func:`state_of`.
        since: the time before, in ns.
    """

    format: str
    document: dict
    image_root: str
    notes: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    since: int = 0


def state_of(places: Iterable[str]) -> tuple[str, int]:
    """(hash of what is at these paths, time of the newest of them in ns).

    Of files it is the content, of images and shards the size and the time, of folders the time, which changes as names
    come and go.
    """
    found, newest = hashlib.sha256(), 0
    for path in sorted(places):
        state: object = None
        with suppress(OSError, ValueError, UserError):
            status = os.stat(path)
            newest = max(newest, status.st_mtime_ns)
            if stat.S_ISREG(status.st_mode) and not is_image(path) and not path.endswith(".tar"):
                state = digest_of(path)
            else:
                state = status.st_mtime_ns, status.st_size * stat.S_ISREG(status.st_mode)
        found.update(f"{expanded(path)}\0{state}\0".encode("utf-8", "surrogatepass"))
    return found.hexdigest(), newest


class Collector:
    """Builds a document; collects the mistakes, and raises the first once all are counted."""

    def __init__(self, names: Sequence[str] | None = None, where: str = "") -> None:
        """
        Args:
            names: the classes; None lists them as they come, sorted at the end.
            where: the file that lists ``names``, for messages.
        """
        self.names, self.where = names, where
        self.images: list[dict] = []
        self.objects: list[dict] = []
        self.left_out: Counter[str] = Counter()
        self.mistakes: list[str] = []

    def mistake(self, file: object, field: str, message: str, fix: str) -> None:
        """One line: file, field, what is wrong and the fix."""
        self.mistakes.append(f"{shown(file)}: {field + ': ' if field else ''}{message}; {fix}")

    def image(self, file_name: str, width: int | None = None, height: int | None = None) -> int:
        """Add an image; returns its id."""
        record: dict[str, Any] = {"id": len(self.images) + 1, "file_name": file_name}
        if width and height:
            record |= {"width": width, "height": height}
        self.images.append(record)
        return record["id"]

    def object(self, file: object, place: str, image_id: int, name: str, box: Sequence[float], **more: Any) -> None:
        """Add an object of the class ``name``; ``box`` is ``x, y, width, height``."""
        if not name:
            self.mistake(file, place, "has no class name", "name it")
        elif self.names is not None and name not in self.names:
            listed = f"the list{' in ' + shown(self.where) if self.where else ''}"
            fix = f"correct it or add it there{nearest(name, self.names)}"
            self.mistake(file, place, f"class {shown(name, 60)!r} is not in {listed}", fix)
        elif not all(map(math.isfinite, box)):
            self.mistake(file, place, "holds NaN or infinity", "correct it")
        elif box[2] <= 0 or box[3] <= 0:
            self.mistake(file, place, f"the box is {box[2]:g} wide and {box[3]:g} high", "correct or remove it")
        else:
            self.objects.append({"image_id": image_id, "name": name, "bbox": list(box), **more})

    def source(self, format: str, image_root: Path | str) -> Source:
        """What was collected.

        Raises:
            UserError: the first mistake, and how many more there are; no images; no classes.
        """
        if self.mistakes:
            more = len(self.mistakes) - 1
            raise UserError(f"{self.mistakes[0]}{f'; {more} more mistakes in this set' if more else ''}")
        if not self.images:
            raise UserError(f"{shown(image_root)}: holds no labeled image; give the folder or list of the labels")
        names = sorted({o["name"] for o in self.objects}) if self.names is None else list(self.names)
        if not names:
            raise UserError(f"{shown(image_root)}: names no class; label objects, or list the classes")
        ids = {name: number for number, name in enumerate(names, start=1)}
        annotations = []
        for number, found in enumerate(self.objects, start=1):
            record = {"id": number, "category_id": ids[found.pop("name")], "iscrowd": 0, **found}
            record.setdefault("area", record["bbox"][2] * record["bbox"][3])
            annotations.append(record)
        document = {
            "images": self.images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }
        notes = [f"{number} {what}" for what, number in self.left_out.items() if number]
        return Source(format, document, str(image_root), notes)


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, *_: object) -> None:
        """Entities are declared there: they can grow without end and name other files."""
        raise UserError("holds a DOCTYPE, which labels never need; remove it")


class _Found(Exception):
    """The tag of the root."""


class _Root(_NoDoctype):
    def start(self, tag: str, attrs: dict[str, str]) -> ET.Element:
        raise _Found(tag)


def read_xml(path: Path, limit: int = TEXT_BYTES) -> ET.Element:
    """The root of an XML file. No entities, no network, no more than ``limit`` bytes.

    Raises:
        UserError: missing, too large, not XML, or with a DOCTYPE.
    """
    data = read_regular(path, limit)
    try:
        return ET.fromstring(data, ET.XMLParser(target=_NoDoctype()))
    except UserError as error:
        raise UserError(f"{shown(path)}: {error}") from None
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{shown(path)}: not whole XML ({shown(error)}); write it again, as UTF-8") from None


def root_tag(path: Path, limit: int) -> str:
    """Of an XML file, of which no more is read than that takes; errors as :func:`read_xml`."""
    try:
        with open_regular(path, limit) as file:
            parser = ET.XMLParser(target=_Root())
            while block := file.read(1 << 14):
                parser.feed(block)
    except _Found as found:
        return str(found)
    except (UserError, ET.ParseError, ValueError, LookupError, OSError):
        pass
    return read_xml(path, limit).tag


def read_text(path: Path, limit: int = TEXT_BYTES) -> str:
    """A text file, in UTF-8 with or without its mark.

    Raises:
        UserError: missing, too large, or another encoding.
    """
    try:
        text = read_regular(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not UTF-8 text at byte {error.start}; write it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{shown(path)}: holds zero bytes, it is no text; write it as UTF-8")
    return text


def number(text: object) -> float:
    """A number of a text or of JSON; NaN for anything else."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return math.nan
    try:
        return float(text)
    except (ValueError, OverflowError):
        return math.nan


def whole(text: object) -> int | None:
    """A positive whole number, or None."""
    value = number(text)
    return int(value) if math.isfinite(value) and value > 0 and value == int(value) else None


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def images_by_stem(folder: Path) -> dict[str, str]:
    """{stem: file name} of the images in ``folder``; of two with one stem the likelier ending."""
    names = sorted(p.name for p in folder.iterdir() if is_image(p.name)) if looked_at(folder).is_dir() else []
    found: dict[str, str] = {}
    for name in sorted(names, key=lambda name: -EXTENSIONS.index(os.path.splitext(name)[1].lower())):
        found[os.path.splitext(name)[0]] = name
    return found


def polygon_box(points: Sequence[float]) -> list[float]:
    """``x, y, width, height`` around ``x1, y1, x2, y2, ...``."""
    xs, ys = points[0::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def polygon_area(points: Sequence[float]) -> float:
    """Of the polygon ``x1, y1, x2, y2, ...``, by the shoelace formula."""
    xs, ys = points[0::2], points[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def sub_files(folder: Path, ending: str) -> Iterable[Path]:
    """Files of this ending in ``folder``, sorted by name; hidden ones, such as macOS leaves, are left out."""
    return sorted(p for p in looked_at(folder).iterdir() if p.suffix.lower() == ending and not p.name.startswith("."))


def count_hidden(folder: Path, ending: str, collector: Collector) -> None:
    """Count what :func:`sub_files` leaves out."""
    if hidden := sum(p.suffix.lower() == ending and p.name.startswith(".") for p in folder.iterdir()):
        collector.left_out[f"hidden {ending} files left out"] += hidden
