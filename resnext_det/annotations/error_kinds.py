"""The kind of mistake each detection is, and the objects that were missed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .coco import Detections
from .dataset import Dataset
from .thresholds import NOT_COUNTED, RIGHT, Matches, match, overlapping

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
    matches = match(truth, detections, ious=(foreground,), limit=max(len(detections), 1))
    of_match, pointed = kinds_of(matches, background)
    kinds = np.zeros(len(detections), dtype=np.uint8)
    kinds[matches.index] = of_match
    crowd = truth.iscrowd == 1
    pointed[matches.taken[0][matches.outcomes[0] == RIGHT]] = True
    return ErrorKinds(kinds, ~(pointed | crowd), ~crowd)


def kinds_of(matches: Matches, background: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """(N,) uint8 kinds of matched detections, and (A,) bool the objects that a localisation or confusion points at."""
    truth, foreground = matches.truth, matches.ious[0]
    found, which, overlap = overlapping(matches.box, matches.image, truth, truth.image, background)
    counted = truth.iscrowd[which] == 0
    found, which, overlap = found[counted], which[counted], overlap[counted]
    same = matches.category[found] == truth.category[which]
    best = np.zeros((2, len(matches.score)))
    for row, chosen in enumerate((same, ~same)):
        rows = found[chosen]
        starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])[: len(rows)])
        if len(starts):
            best[row, rows[starts]] = np.maximum.reduceat(overlap[chosen], starts)
    own, other = best
    outcome = matches.outcomes[0]
    conditions = {
        "correct": outcome == RIGHT, "ignored": outcome == NOT_COUNTED, "duplicate": own >= foreground,
        "confusion": other >= foreground, "localisation": own >= background, "both": other >= background,
    }  # fmt: skip
    numbers = [KINDS.index(kind) for kind in conditions]
    kinds = np.select(list(conditions.values()), numbers, KINDS.index("background")).astype(np.uint8)
    kind = kinds[found]
    points = (same & (kind == KINDS.index("localisation")) & (overlap == own[found])) | (
        ~same & (kind == KINDS.index("confusion")) & (overlap == other[found])
    )
    pointed = np.zeros(len(truth), dtype=bool)
    pointed[which[points]] = True
    return kinds, pointed
