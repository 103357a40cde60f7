"""COCO's two file formats, read once and checked: ground truth, and detections held as compact arrays.

Boxes are ``x, y, width, height`` in pixels, as COCO writes them. No detectron2, no pycocotools.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import UserError, listed
from ..files import atomic_write, misfit
from . import masks as segmentations
from .check.findings import shorten
from .check.inspection import Options, inspect_document, open_set
from .column_file import Unusable, cache_file, digest_of, kept, key_of, map_columns, recalled, write_columns
from .columns import MISSING, boxes, get, integers
from .dataset import Dataset
from .reading import CHUNK, return_memory, stream_list

if TYPE_CHECKING:
    from .typed_json import Found

logger = logging.getLogger(__name__)


def read_ground_truth(
    json_file: str | os.PathLike | Mapping,
    with_masks: bool = False,
    *,
    max_detections: int = 100,
    folder: str | os.PathLike | None = None,
) -> Dataset:
    """Read a COCO annotation file, or the dict it holds, as ground truth: records count as they are written.

    The rules are the check's. What only training needs (file names, boxes inside their images) is left alone here,
    since pycocotools counts such records too. A missing ``area`` becomes width x height, a missing ``iscrowd`` 0.

    Args:
        json_file: a path or the parsed file.
        with_masks: keep ``segmentation``; without it a large file needs a fraction of the memory.
        max_detections: the evaluation's limit per image and class, to warn of images with more objects.
        folder: ``folder/cache``, if one is given, keeps what a file holds: with the same content and arguments it is
            mapped from there.

    Raises:
        UserError: not JSON, no images or categories, duplicate ids, an annotation whose image, category, box or
            mask is missing or unusable: the first error, and how many more there are.
    """
    source = "ground truth" if isinstance(json_file, Mapping) else str(json_file)
    file, key = None, ""
    if folder is not None and not isinstance(json_file, Mapping):
        file = cache_file(folder, source, "truth", with_masks, max_detections)
        key = key_of(__version__, source, digest_of(source) if os.path.isfile(source) else None)
        known = recalled(file, lambda path: _as_kept(path, key))
        if known is not None:
            return known
    document = dict(json_file) if isinstance(json_file, Mapping) else open_set(os.fspath(json_file))
    checked = inspect_document(document, source, None, Options(masks=with_masks, max_detections=max_detections))
    checked.raise_errors()
    warnings = [str(finding) for finding in checked.findings.of("warning")]
    for warning in warnings:
        logger.warning("%s", warning)
    found = checked.dataset(as_written=True, masks=with_masks)
    del checked, document
    if file is not None:
        kept(file, lambda path: write_columns(path, found, key, warnings))
    return_memory()
    return found


def _as_kept(path: Path, key: str) -> Dataset:
    found, warnings = map_columns(path, key)
    if misfit(warnings, [str]):
        raise Unusable("is damaged (its warnings)")
    for warning in warnings:
        logger.warning("%s", warning)
    return found


@dataclass
class Detections:
    """Many detections as arrays: about 40 bytes a box, where a list of dicts takes 600 and more.

    Attributes:
        image_ids: (N,) int64 (Python integers where one needs more bits).
        category_ids: (N,) likewise, the dataset's own ids.
        boxes: (N, 4) ``x, y, width, height``, pixels; float32 from a model, float64 from a JSON file.
        scores: (N,) float64.
        masks: N compressed RLE strings, in files also lists of polygons; or None.
        mask_sizes: (N, 2) int64 height and width of each RLE, with ``masks``.
        keypoints: (N, 3 K) floats ``x, y, score`` as COCO writes them, or None.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: list[Any] | None = None
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
        joined: dict[str, Any] = {}
        for column in fields(cls):
            values = [getattr(part, column.name) for part in parts]
            if isinstance(values[0], np.ndarray):
                joined[column.name] = np.concatenate(values)
            elif isinstance(values[0], list):
                joined[column.name] = [item for value in values for item in value]
        return cls(**joined, source=parts[0].source)

    def segmentation(self, i: int) -> list | dict:
        """COCO's: polygons, or run lengths ``{size, counts}``."""
        assert self.masks is not None
        mask = self.masks[i]
        if self.mask_sizes is None:
            return mask
        return {"size": self.mask_sizes[i].tolist(), "counts": mask.decode()} if isinstance(mask, bytes) else mask

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
                record["segmentation"] = self.segmentation(i)
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
            UserError: a record is no object, lacks ``image_id``, ``category_id`` or ``score``, has a value that is no
                number, or an unusable segmentation.
        """
        records = list(records)
        return cls._of_chunks((records[i : i + CHUNK] for i in range(0, len(records), CHUNK)), source)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> Detections:
        """Read a COCO result file; records become numbers some thousands at a time, so never all are objects.

        Raises:
            UserError: as :func:`from_records`; not JSON, or no list of detections.
        """
        from .typed_json import Untyped, stream_boxes  # a detector that has left with its own packages reads no results

        with suppress(Untyped, UserError, OSError, OverflowError):
            parts = [cls._of_boxes(found, str(path)) for found in stream_boxes(path)]
            return cls.concatenate(parts) if any(map(len, parts)) else cls.empty()
        return cls._of_chunks(stream_list(path), str(path))

    @classmethod
    def _of_boxes(cls, found: list[Found], source: str) -> Detections:
        number = len(found)
        boxes = np.fromiter(chain.from_iterable([one.bbox for one in found]), np.float64, 4 * number)
        return cls(
            np.fromiter([one.image_id for one in found], np.int64, number),
            np.fromiter([one.category_id for one in found], np.int64, number),
            boxes.reshape(number, 4),
            np.fromiter([one.score for one in found], np.float64, number),
            source=source,
        )

    @classmethod
    def _of_chunks(cls, chunks: Iterable[list], source: str) -> Detections:
        parts: list[Detections] = []
        first = 0
        given: set[str] | None = None
        for records in chunks:
            part, has = _columns(records, source, first)
            if given is not None and has != given:
                _refuse_mixture(given ^ has, source)
            given = has
            parts.append(part)
            first += len(records)
        return cls.concatenate(parts) if parts else cls.empty()


_OPTIONAL = ("bbox", "segmentation", "keypoints")


def _refuse_mixture(keys: set[str], source: str) -> None:
    raise UserError(
        f"{source}: some detections have {listed(sorted(keys))} and others have not; write it in all or none"
    )


def _columns(records: list, source: str, first: int) -> tuple[Detections, set[str]]:
    """Records as arrays, and which of the optional fields they have. ``first`` is the number of the first of them."""

    def refuse(row: int, why: str) -> None:
        raise UserError(f"{source}: detection {first + row} {why}")

    for row, record in enumerate(records):
        if not isinstance(record, Mapping):
            refuse(row, f"is {shorten(record)}, not an object with image_id, category_id, bbox and score; write that")
    image_ids, category_ids = (_ids(records, key, refuse) for key in ("image_id", "category_id"))
    scores = _scores(get(records, "score"), refuse)
    has = {key for key in _OPTIONAL if any(record.get(key) not in (None, []) for record in records)}
    mixed = {key for key in has if any(record.get(key) in (None, []) for record in records)}
    if mixed:
        _refuse_mixture(mixed, source)
    found = Detections(image_ids, category_ids, np.full((len(records), 4), np.nan), scores, source=source)
    if "bbox" in has:
        column = boxes([list(v) if isinstance(v, tuple) else v for v in get(records, "bbox")])
        for row in (*column.bad, *column.cast):
            refuse(
                row, f"has bbox {shorten(records[row]['bbox'])}, not four finite numbers x, y, width, height; fix it"
            )
        found.boxes = column.values
    if "segmentation" in has:
        found.masks, found.mask_sizes = _masks(get(records, "segmentation"), refuse)
    if "keypoints" in has:
        found.keypoints = _keypoints(get(records, "keypoints"), refuse)
    return found, has


def _ids(records: list, key: str, refuse: Callable[[int, str], None]) -> np.ndarray:
    raw = get(records, key)
    column = integers(raw, wide=True)
    for row in column.bad:
        if raw[row] is MISSING:
            refuse(row, f"has no {key}; add it")
        refuse(row, f"has {key} {shorten(raw[row])}, not a whole number of 64 bits; number them with integers")
    return column.values


def _scores(raw: list, refuse: Callable[[int, str], None]) -> np.ndarray:
    if set(map(type, raw)) <= {float}:
        return np.array(raw, dtype=np.float64)
    for row, value in enumerate(raw):
        if value is MISSING:
            refuse(row, "has no score; add it")
        if type(value) not in (int, float):
            refuse(row, f"has score {shorten(value)}; scores, boxes and keypoints must be numbers: fix it")
        if type(value) is int and not segmentations.finite_number(value):
            refuse(row, f"has score {shorten(value)}, larger than any float; write scores from 0 to 1")
    return np.array(raw, dtype=np.float64)


def _masks(raw: list, refuse: Callable[[int, str], None]) -> tuple[list, np.ndarray]:
    masks: list[Any] = []
    sizes = np.zeros((len(raw), 2), dtype=np.int64)
    for row, value in enumerate(raw):
        why = segmentations.fault(value)
        if why:
            refuse(row, f"has segmentation {shorten(value)}, which {why}; encode it as COCO does")
        if isinstance(value, Mapping):
            sizes[row] = value["size"]
            value = segmentations.compressed(value["counts"])
        masks.append(value)
    return masks, sizes


def _keypoints(raw: list, refuse: Callable[[int, str], None]) -> np.ndarray:
    width = len(raw[0]) if isinstance(raw[0], list | tuple) else 0
    for row, value in enumerate(raw):
        if not isinstance(value, list | tuple) or not all(map(segmentations.finite_number, value)) or len(value) % 3:
            refuse(row, f"has keypoints {shorten(value)}, not finite numbers x, y, score of each; fix it")
        if len(value) != width:
            refuse(row, f"has {len(value) // 3} keypoints, others {width // 3}; write the same in all")
    return np.array(raw, dtype=np.float64).reshape(len(raw), width)
