"""One data set as one value made of columns: what the loader, the evaluator, the report and replay receive."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from .classes import match_classes


@dataclass(frozen=True)
class Texts:
    """N texts in one buffer, so that millions cost their bytes and can be mapped from a file.

    Attributes:
        data: UTF-8, uint8.
        offsets: (N + 1,) int64; text i is ``data[offsets[i]:offsets[i + 1]]``.
    """

    data: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """The texts in one buffer; lone surrogates, which no UTF-8 holds, are kept."""
        given = list(texts)
        joined = "".join(given)
        data = joined.encode("utf-8", "surrogatepass")
        sizes = map(len, given) if joined.isascii() else (len(text.encode("utf-8", "surrogatepass")) for text in given)
        offsets = np.concatenate([[0], np.cumsum(np.fromiter(sizes, np.int64, len(given)))])
        return cls(np.frombuffer(data, dtype=np.uint8), offsets.astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[str]:
        data, ends = self.data.tobytes(), self.offsets.tolist()
        return (data[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise(ends))

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes().decode("utf-8", "surrogatepass")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images, classes and objects of one set, checked. I images, K classes, A objects: by image, those of one in
    the order of the file.

    Attributes:
        source: the file's name, for messages.
        image_root: folder of the images; None where it is not known.
        image_ids: (I,) rising; int64, or Python integers where one needs more bits.
        file_names: I paths below ``image_root``, "" where the file has none.
        widths, heights: (I,) int64 pixels, 0 where unknown.
        category_ids: (K,) the set's own ids of the classes 0, 1, ...; rising unless :meth:`in_order_of` changed that.
        class_names: K names.
        annotation_ids: (A,) as in the file, for people to find the record.
        image, category: (A,) int64 positions in the columns of images and of classes.
        boxes: (A, 4) float64 ``x, y, width, height`` in pixels.
        areas: (A,) float64.
        iscrowd: (A,) int64, 0 or 1.
        difficult: (A,) bool, VOC's mark; False where the file has none.
        masks: A segmentations as JSON, "" for none; None where they were not asked for.
        keypoints: A lists of ``x, y, visibility`` as JSON, "" for none; None where no object has any.
        num_keypoints: (A,) int64 visible ones, -1 where the file does not say; with ``keypoints``.
        annotated: False for a set without annotations, such as COCO's test sets.
        places: paths of all that it was read from, with a set of many files that is kept for later runs.
    """

    source: str
    image_root: str | None
    image_ids: np.ndarray
    file_names: Texts
    widths: np.ndarray
    heights: np.ndarray
    category_ids: np.ndarray
    class_names: list[str]
    annotation_ids: np.ndarray
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    iscrowd: np.ndarray
    difficult: np.ndarray
    masks: Texts | None = None
    keypoints: Texts | None = None
    num_keypoints: np.ndarray | None = None
    annotated: bool = True
    places: Texts | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.image, np.arange(len(self.image_ids) + 1))

    def objects_of(self, image: int) -> slice:
        """Where the objects of the image at position ``image`` stand."""
        return slice(int(self._starts[image]), int(self._starts[image + 1]))

    def segmentation(self, i: int) -> Any:
        """Polygons or run lengths of object ``i``; None where it has none, or where masks were not asked for."""
        return json.loads(self.masks[i]) if self.masks is not None and self.masks[i] else None

    def points(self, i: int) -> list[float] | None:
        """Keypoints of object ``i``, or None."""
        return json.loads(self.keypoints[i]) if self.keypoints is not None and self.keypoints[i] else None

    def class_index(self) -> dict[int, int]:
        """{the set's own id: position of the class}."""
        return {int(value): i for i, value in enumerate(self.category_ids)}

    def in_order_of(self, names: Sequence[str], model: str = "the model") -> Dataset:
        """The same set with its classes in the order of ``names``; itself where that is the order it has.

        Raises:
            UserError: as :func:`~.classes.match_classes`.
        """
        places = match_classes(names, self.class_names, model=model, source=self.source)
        if places == list(range(len(places))):
            return self
        moved = np.argsort(places)
        return replace(
            self,
            category_ids=self.category_ids[places],
            class_names=[self.class_names[i] for i in places],
            category=moved[self.category],
        )

    def image_records(self) -> list[dict]:
        """The images as COCO's records."""
        columns = (self.image_ids.tolist(), self.file_names, self.heights.tolist(), self.widths.tolist())
        return [
            {"id": i, "file_name": name, "height": height, "width": width}
            for i, name, height, width in zip(*columns, strict=True)
        ]

    def records(self) -> list[dict]:
        """The objects as COCO's records, for what takes nothing else; without masks and keypoints."""
        columns = (self.image_ids[self.image], self.category_ids[self.category], self.boxes, self.areas, self.iscrowd)
        return [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            for i, (image, category, box, area, crowd) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), start=1
            )
        ]


def texts_of_json(values: Iterable[Any]) -> Texts:
    """JSON of each value, "" where it is None."""
    return Texts.of("" if value is None else json.dumps(value, separators=(",", ":")) for value in values)


def positions(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each of ``ids`` in ``known``, -1 for those absent. The values of ``known`` differ."""
    if ids.dtype == object or known.dtype == object:
        place: Mapping[int, int] = {int(value): i for i, value in enumerate(known)}
        return np.array([place.get(int(value), -1) for value in ids], dtype=np.int64)
    if not len(known):
        return np.full(len(ids), -1)
    order = np.argsort(known, kind="stable")
    place_of = np.searchsorted(known[order], ids).clip(max=len(known) - 1)
    return np.where(known[order][place_of] == ids, order[place_of], -1)
