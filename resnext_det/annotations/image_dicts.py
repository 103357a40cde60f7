"""detectron2's standard dicts of the images of data sets, each made when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from .dataset import Dataset

XYWH_ABS = 1
"""detectron2's ``BoxMode.XYWH_ABS``, an integer enumeration, which this room does without."""


class ImageDicts(Sequence[dict]):
    """Dicts of the images of several sets, in the order of image ids; boxes are XYWH_ABS, classes contiguous.

    Images without objects have an empty list. ``segmentation`` comes where the set keeps masks, ``keypoints``, if asked
    for, in detectron2's continuous coordinates. A set without annotations has no key ``annotations``.

    Attributes:
        chosen: (N,) the images that are there, as positions in those of all sets, one set after the other.
    """

    def __init__(
        self,
        sets: Sequence[Dataset],
        *,
        keypoints: bool = False,
        chosen: np.ndarray | None = None,
        more: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """
        Args:
            chosen: all by default.
            more: what each of the images of ``sets`` has beside this, such as proposals.
        """
        self.sets, self.keypoints, self.more = list(sets), keypoints, more
        self._ends = np.cumsum([len(dataset.image_ids) for dataset in self.sets])
        self.chosen = np.arange(self._ends[-1] if self.sets else 0) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, rows: np.ndarray) -> ImageDicts:
        """Those at ``rows`` (positions or a mask)."""
        return ImageDicts(self.sets, keypoints=self.keypoints, chosen=self.chosen[rows], more=self.more)

    def wider_than_high(self) -> np.ndarray:
        """(N,) bool."""
        return np.concatenate([dataset.widths > dataset.heights for dataset in self.sets])[self.chosen]

    def _place(self, row: int) -> tuple[Dataset, int]:
        """The set of an image, and its position there."""
        image = int(self.chosen[row])
        number = int(np.searchsorted(self._ends, image, side="right"))
        return self.sets[number], image - (int(self._ends[number - 1]) if number else 0)

    def annotation_ids(self, row: int) -> list[int]:
        """As in the file, of the objects of an image."""
        dataset, image = self._place(row)
        return dataset.annotation_ids[dataset.objects_of(image)].tolist()

    @overload
    def __getitem__(self, row: int) -> dict: ...
    @overload
    def __getitem__(self, row: slice) -> ImageDicts: ...
    def __getitem__(self, row: int | slice) -> dict | ImageDicts:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        dataset, image = self._place(row)
        record: dict[str, Any] = {
            "file_name": os.path.join(dataset.image_root or "", dataset.file_names[image]),
            "height": int(dataset.heights[image]),
            "width": int(dataset.widths[image]),
            "image_id": int(dataset.image_ids[image]),
        }
        if dataset.annotated:
            objects = dataset.objects_of(image)
            columns = (column[objects].tolist() for column in (dataset.boxes, dataset.category, dataset.iscrowd))
            record["annotations"] = [
                self._annotation(dataset, objects.start + i, *values)
                for i, values in enumerate(zip(*columns, strict=True))
            ]
        return record | self.more[self.chosen[row]] if self.more is not None else record

    def _annotation(self, dataset: Dataset, i: int, box: list[float], category: int, crowd: int) -> dict[str, Any]:
        annotation: dict[str, Any] = {
            "bbox": box, "bbox_mode": XYWH_ABS, "category_id": category, "iscrowd": crowd
        }  # fmt: skip
        segmentation = dataset.segmentation(i)
        if segmentation:
            annotation["segmentation"] = segmentation
        points = dataset.points(i) if self.keypoints else None
        if points:
            annotation["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(points)]
        return annotation


def dataset_dicts(dataset: Dataset, *, keypoints: bool = False) -> list[dict]:
    """All of :class:`ImageDicts` of one set."""
    return list(ImageDicts([dataset], keypoints=keypoints))
