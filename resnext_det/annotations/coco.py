"""COCO's two file formats, read once and checked: ground truth, and detections held as compact arrays.

Boxes are ``x, y, width, height`` in pixels, as COCO writes them. No detectron2, no pycocotools.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import atomic_write


def listed(items: Iterable[Any], shown: int = 10) -> str:
    """``1, 2, 3 and 4 more``: the beginning of a long list, for one line of an error message."""
    items = list(items)
    rest = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(str(item) for item in items[:shown]) + rest


def as_id(value: Any, source: str, name: str) -> int:
    """An id as an integer: 7, 7.0 and "7" are all 7; anything else is a :class:`UserError`."""
    if type(value) is int:
        return value
    try:
        number = int(value)
        if not isinstance(value, bool) and (number == float(value)):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{source}: {name} {value!r} is not a whole number; number them with integers")


@dataclass
class GroundTruth:
    """One COCO annotation file, checked and put in order.

    Attributes:
        source: the file's name, for messages.
        images: the file's image records by rising id.
        categories: the file's category records by rising id.
        annotations: records with ``image_id``, ``category_id``, ``bbox``, ``area``, ``iscrowd`` (0 or 1) and
            ``number``, counted from 1 in the file's order, which stands for ``id`` everywhere: pycocotools takes
            a match with id 0 for no match at all. None where the file has no annotations (COCO's test sets).
    """

    source: str
    images: list[dict]
    categories: list[dict]
    annotations: list[dict] | None

    @property
    def image_ids(self) -> np.ndarray:
        """Rising, shape (images,)."""
        return np.array([image["id"] for image in self.images], dtype=np.int64)

    @property
    def category_ids(self) -> np.ndarray:
        """Rising, shape (categories,)."""
        return np.array([category["id"] for category in self.categories], dtype=np.int64)

    @property
    def class_names(self) -> list[str]:
        """In the order of :attr:`category_ids`."""
        return [str(category.get("name", category["id"])) for category in self.categories]


def read_ground_truth(json_file: str | os.PathLike | Mapping, with_masks: bool = False) -> GroundTruth:
    """Read and check a COCO annotation file, or the dict it holds.

    Missing ``area`` becomes width x height, missing or null ``iscrowd`` becomes 0; ids of digits become integers.

    Args:
        json_file: a path or the parsed file.
        with_masks: keep ``segmentation``; without it a large file needs a fraction of the memory.

    Raises:
        UserError: not JSON, no images or categories, duplicate ids, or an annotation whose image, category or box
            is missing or unusable.
    """
    if isinstance(json_file, Mapping):
        source, content = "ground truth", json_file
    else:
        source = str(json_file)

        def without_mask(record: dict) -> dict:
            record.pop("segmentation", None)
            return record

        content = _load(source, None if with_masks else without_mask)
    if not isinstance(content, Mapping):
        raise UserError(f"{source}: a COCO annotation file is an object with images, annotations and categories")
    images = _records_by_id(content, "images", source)
    categories = _records_by_id(content, "categories", source)
    annotations = content.get("annotations")
    if annotations is not None:
        annotations = list(_checked_annotations(annotations, images, categories, source, with_masks))
    return GroundTruth(source, list(images.values()), list(categories.values()), annotations)


def _load(source: str, object_hook: Any = None) -> Any:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{source}: no such file")
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file, object_hook=object_hook)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not valid JSON ({error}); was it cut off while being written?") from None


def _records_by_id(content: Mapping, key: str, source: str) -> dict[int, dict]:
    records = content.get(key)
    if not isinstance(records, Sequence) or (key == "categories" and not records):
        raise UserError(f"{source}: no list of {key}; add it")
    found: dict[int, dict] = {}
    ids: list[int] = []
    for position, record in enumerate(records):
        if not isinstance(record, Mapping) or "id" not in record:
            raise UserError(f"{source}: {key}[{position}] has no id; add one")
        ids.append(as_id(record["id"], source, f"{key}[{position}].id"))
        found[ids[-1]] = {**record, "id": ids[-1]}
    _refuse_duplicates(ids, f"{source}: duplicate {key[:-1] if key == 'images' else 'category'} ids")
    return dict(sorted(found.items()))


def _refuse_duplicates(ids: Sequence[int], what: str) -> None:
    if len(set(ids)) < len(ids):
        twice = [number for number, count in Counter(ids).items() if count > 1]
        raise UserError(f"{what} {listed(twice)}; give every record an id of its own")


def _checked_annotations(
    annotations: Sequence[Mapping], images: dict, categories: dict, source: str, with_masks: bool
) -> Iterator[dict]:
    if not isinstance(annotations, list | tuple) or not all(isinstance(record, Mapping) for record in annotations):
        raise UserError(f"{source}: annotations is not a list of objects; see COCO's format")
    ids = [as_id(record["id"], source, "annotation id") for record in annotations if "id" in record]
    _refuse_duplicates(ids, f"{source}: duplicate annotation ids")
    for number, record in enumerate(annotations, start=1):
        name = f"annotation {record.get('id', f'number {number}')}"
        checked = dict(record)
        for key, known in (("image_id", images), ("category_id", categories)):
            if key not in record:
                raise UserError(f"{source}: {name} has no {key}; add it")
            checked[key] = as_id(record[key], source, f"{name}, {key}")
            if checked[key] not in known:
                table = "images" if key == "image_id" else "categories"
                raise UserError(f"{source}: {name}: {key} {record[key]} is not among the file's {table}")
        checked["bbox"] = _box(record.get("bbox"), f"{source}: {name}")
        area = record.get("area")
        checked["area"] = checked["bbox"][2] * checked["bbox"][3] if area is None else _number(area, source, name)
        checked["iscrowd"] = int(bool(record.get("iscrowd")))
        checked["number"] = number
        if not with_masks:
            checked.pop("segmentation", None)
        yield checked


def _number(value: Any, source: str, name: str) -> float:
    if isinstance(value, (int, float)) and -1e18 < value < 1e18:
        return value
    raise UserError(f"{source}: {name}: area {value!r} is not a finite number; leave it out to have width x height")


def _box(value: Any, where: str) -> list[float]:
    """Four finite numbers, or a :class:`UserError`."""
    try:
        if len(value) == 4 and all(isinstance(v, (int, float)) and -1e18 < v < 1e18 for v in value):
            return list(value)
    except TypeError:
        pass
    raise UserError(f"{where}: bbox {value!r} is not four finite numbers x, y, width, height; fix or delete it")


@dataclass
class Detections:
    """Many detections as arrays: about 40 bytes a box, where a list of dicts takes 600 and more.

    Attributes:
        image_ids: (N,) int64.
        category_ids: (N,) int64, the dataset's own ids.
        boxes: (N, 4) ``x, y, width, height``, pixels; float32 from a model, float64 from a JSON file.
        scores: (N,) float64.
        masks: N compressed RLE strings, or None.
        mask_sizes: (N, 2) int64 height and width, with ``masks``.
        keypoints: (N, 3 K) floats ``x, y, score`` as COCO writes them, or None.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: list[bytes] | None = None
    mask_sizes: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    source: str = field(default="detections", compare=False)

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> Detections:
        """No detections."""
        none = np.zeros(0, dtype=np.int64)
        return cls(none, none, np.zeros((0, 4), dtype=np.float32), np.zeros(0))

    def take(self, index: np.ndarray) -> Detections:
        """The detections at ``index`` (positions or a mask), in that order."""
        positions = np.arange(len(self))[index]
        return replace(
            self,
            image_ids=self.image_ids[positions],
            category_ids=self.category_ids[positions],
            boxes=self.boxes[positions],
            scores=self.scores[positions],
            masks=None if self.masks is None else [self.masks[i] for i in positions],
            mask_sizes=None if self.mask_sizes is None else self.mask_sizes[positions],
            keypoints=None if self.keypoints is None else self.keypoints[positions],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """All ``parts`` one after the other. Parts without detections need not have masks or keypoints."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls.empty()
        joined = {}
        for column in fields(cls):
            values = [getattr(part, column.name) for part in parts]
            if isinstance(values[0], np.ndarray):
                joined[column.name] = np.concatenate(values)
            elif isinstance(values[0], list):
                joined[column.name] = [item for value in values for item in value]
        return cls(**joined, source=parts[0].source)

    def records(self, index: Iterable[int] | None = None) -> Iterator[dict]:
        """COCO result records, one by one."""
        for i in range(len(self)) if index is None else index:
            record = {
                "image_id": int(self.image_ids[i]),
                "category_id": int(self.category_ids[i]),
                "bbox": self.boxes[i].tolist(),
                "score": float(self.scores[i]),
            }
            if self.masks is not None:
                size = self.mask_sizes[i].tolist()
                record["segmentation"] = {"size": size, "counts": self.masks[i].decode("ascii")}
            if self.keypoints is not None:
                record["keypoints"] = self.keypoints[i].tolist()
            yield record

    def write_json(self, path: str | os.PathLike) -> None:
        """Write COCO's result format record by record; the file appears under its name only once it is whole."""
        with atomic_write(path) as file:
            file.write("[")
            for i, record in enumerate(self.records()):
                file.write((",\n" if i else "") + json.dumps(record))
            file.write("]\n")

    @classmethod
    def from_records(cls, records: Iterable[Mapping], source: str = "detections") -> Detections:
        """COCO result records as arrays.

        Raises:
            UserError: a record without ``image_id``, ``category_id`` or ``score``, or with values that are not numbers.
        """
        columns = _Columns(source)
        for record in records:
            columns.append(record)
        return columns.detections()

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Detections:
        """Read a COCO result file; each record becomes numbers at once, so the list of dicts never exists."""
        columns = _Columns(str(path))

        def hook(record: dict) -> dict | None:
            # A mask's {"size", "counts"} comes by first and has to stay a dict.
            if "counts" in record:
                return record
            columns.append(record)
            return None

        content = _load(str(path), hook)
        if not isinstance(content, list):
            raise UserError(f"{path}: a COCO result file is a list of detections, this is a {type(content).__name__}")
        return columns.detections()


class _Columns:
    """Result records, taken apart as they come."""

    def __init__(self, source: str):
        self.source = source
        self.image_ids, self.category_ids = array("q"), array("q")
        self.boxes, self.scores, self.keypoints = array("d"), array("d"), array("d")
        self.masks: list[bytes] = []
        self.mask_sizes = array("q")

    def append(self, record: Mapping) -> None:
        try:
            image_id, category_id, score = record["image_id"], record["category_id"], record["score"]
        except KeyError as error:
            raise UserError(f"{self._where()} has no {error.args[0]}; add it") from None
        self.image_ids.append(as_id(image_id, self._where(), "image_id"))
        self.category_ids.append(as_id(category_id, self._where(), "category_id"))
        try:
            self.scores.append(score)
            if "bbox" in record:
                self.boxes.extend(record["bbox"])
            if "keypoints" in record:
                self.keypoints.extend(record["keypoints"])
        except TypeError:
            raise UserError(f"{self._where(-1)}: score, bbox and keypoints must be numbers; fix it") from None
        if record.get("segmentation"):
            self._append_mask(record["segmentation"])

    def _where(self, back: int = 0) -> str:
        return f"{self.source}: detection {len(self.scores) + back}"

    def _append_mask(self, mask: Any) -> None:
        if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), (str, bytes)):
            raise UserError(f"{self._where(-1)}: segmentation must be compressed RLE, {{size, counts}}; encode it")
        counts = mask["counts"]
        self.masks.append(counts.encode("ascii") if isinstance(counts, str) else counts)
        self.mask_sizes.extend(mask["size"])

    def detections(self) -> Detections:
        number = len(self.scores)
        boxes = self._table(self.boxes, "bbox")
        if boxes.shape[1] not in (0, 4):
            raise UserError(f"{self.source}: bbox must be four numbers x, y, width, height in every detection")
        if boxes.shape[1] == 0:
            boxes = np.full((number, 4), np.nan)  # masks or keypoints alone
        if self.masks and len(self.masks) != number:
            raise UserError(f"{self.source}: {number - len(self.masks)} detections have no segmentation, the rest have")
        keypoints = self._table(self.keypoints, "keypoints")
        return Detections(
            np.array(self.image_ids, dtype=np.int64),
            np.array(self.category_ids, dtype=np.int64),
            boxes,
            np.array(self.scores, dtype=np.float64),
            self.masks or None,
            np.array(self.mask_sizes, dtype=np.int64).reshape(number, 2) if self.masks else None,
            keypoints if keypoints.shape[1] else None,
            source=self.source,
        )

    def _table(self, values: array, name: str) -> np.ndarray:
        number = len(self.scores)
        if number and len(values) % number:
            raise UserError(f"{self.source}: not every detection has the same count of numbers in its {name}")
        return np.array(values, dtype=np.float64).reshape(number, len(values) // number if number else 0)
