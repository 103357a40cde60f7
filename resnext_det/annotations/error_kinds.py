"""The kind of mistake each detection is, and the objects that were missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .coco import Detections
from .dataset import Dataset

KINDS = ("correct", "localisation", "confusion", "both", "duplicate", "background", "ignored")
"""Of a detection; see :func:`error_kinds`."""


@dataclass
class ErrorKinds:
    """The outcome for one set.

    Attributes:
        kinds: (N,) index into :data:`KINDS` for each detection, in the order given.
        missed: (annotations,) bool in the order of the ground truth: an object that nothing accounts for.
        objects: (annotations,) bool: it counts, being no crowd.
    """

    kinds: np.ndarray
    missed: np.ndarray
    objects: np.ndarray

    def counts(self) -> dict[str, int]:
        """Detections of each kind, then the objects missed."""
        numbers = {kind: int((self.kinds == i).sum()) for i, kind in enumerate(KINDS)}
        return {**numbers, "missed": int(self.missed.sum())}


def error_kinds(truth: Dataset, detections: Detections, foreground: float = 0.5, background: float = 0.1) -> ErrorKinds:
    """Sort detections into kinds, after TIDE (Bolya et al., ECCV 2020, Sec. 2.2).

    By falling score, within each image, with the overlap IoU of boxes:

    - **correct**: at least ``foreground`` with a free object of its class; it takes the best one.
    - **ignored**: else half of it or more lies in a crowd of its class, which COCO does not count.
    - **duplicate**: at least ``foreground`` with an object of its class that a better detection has taken.
    - **confusion**: at least ``foreground`` with an object of another class.
    - **localisation**: between ``background`` and ``foreground`` with an object of its class.
    - **both**: between the two with an object of another class: wrong place and wrong class.
    - **background**: less than ``background`` with every object.

    Objects that no detection took are **missed**, unless a localisation or confusion error already points at them.
    """
    boxes, labels, crowd = truth.boxes, truth.category_ids[truth.category], truth.iscrowd == 1
    kinds = np.full(len(detections), KINDS.index("background"))
    taken, pointed = np.zeros(len(truth), dtype=bool), np.zeros(len(truth), dtype=bool)
    objects_of = _positions(truth.image_ids[truth.image])
    for image, found in _positions(detections.image_ids).items():
        found = found[np.argsort(-detections.scores[found], kind="stable")]
        here = objects_of.get(image, np.zeros(0, dtype=int))
        overlap, inside = _overlaps(detections.boxes[found].astype(float), boxes[here])
        overlap[:, crowd[here]] = 0
        own_class = detections.category_ids[found][:, None] == labels[here][None]
        for row, i in enumerate(found):
            kind, at = _kind(
                overlap[row], inside[row], own_class[row], taken[here], crowd[here], foreground, background
            )
            kinds[i] = KINDS.index(kind)
            if kind == "correct":
                taken[here[at]] = True
            elif kind in ("localisation", "confusion"):
                pointed[here[at]] = True
    return ErrorKinds(kinds, ~(taken | pointed | crowd), ~crowd)


def _positions(ids: np.ndarray) -> Mapping[int, np.ndarray]:
    """Id -> where it stands in the column."""
    order = np.argsort(ids, kind="stable")
    unique, starts = np.unique(ids[order], return_index=True)
    return dict(zip(unique.tolist(), np.split(order, starts[1:]), strict=True)) if len(unique) else {}


def _overlaps(found: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU, and the part of each detection that lies in each object: (N, G) each."""
    low = np.maximum(found[:, None, :2], real[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], real[None, :, :2] + real[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    area, real_area = found[:, 2:].prod(axis=1)[:, None], real[:, 2:].prod(axis=1)[None]
    return shared / np.maximum(area + real_area - shared, 1e-12), shared / np.maximum(area, 1e-12)


def _kind(
    overlap: np.ndarray,
    inside: np.ndarray,
    own_class: np.ndarray,
    taken: np.ndarray,
    crowd: np.ndarray,
    foreground: float,
    background: float,
) -> tuple[str, int]:
    """The kind of one detection, and the object it is about (-1: none)."""

    def best(where: np.ndarray) -> tuple[float, int]:
        if not where.any():
            return 0.0, -1
        values = np.where(where, overlap, -1.0)
        return float(values.max()), int(values.argmax())

    free, at = best(own_class & ~taken & ~crowd)
    if free >= foreground:
        return "correct", at
    if (inside[own_class & crowd] >= 0.5).any():
        return "ignored", -1
    own, own_at = best(own_class & ~crowd)
    other, other_at = best(~own_class & ~crowd)
    if own >= foreground:
        return "duplicate", own_at
    if other >= foreground:
        return "confusion", other_at
    if own >= background:
        return "localisation", own_at
    return ("both", other_at) if other >= background else ("background", -1)
