"""Which labels are probably wrong, by what a detector that has not seen them found in the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import shown
from .coco import Detections
from .dataset import Dataset, positions
from .thresholds import RIGHT, WRONG, Matches, iou, match, overlapping

KINDS = ("missing", "swapped", "shifted", "invented")
"""Of a label; see :func:`label_errors`."""

FOREGROUND, BACKGROUND = 0.5, 0.1  # overlaps, as of the kinds of error
_PRIOR = 10  # detections of all classes together that count in each class, where it has few of its own


@dataclass(frozen=True)
class LabelErrors:
    """S suspects, the most probable first.

    Attributes:
        kind: (S,) index into :data:`KINDS`.
        score: (S,) 0 to 1, how probable it is.
        object: (S,) position in the objects of the set; -1 where one is missing.
        detection: (S,) position in the detections, as given, that speaks against the label; -1 for an invented one.
    """

    kind: np.ndarray
    score: np.ndarray
    object: np.ndarray
    detection: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def records(self, truth: Dataset, detections: Detections) -> list[dict[str, Any]]:
        """One dict for each suspect: what a person needs to find it, and what was found in its place."""
        records = []
        class_of = positions(detections.category_ids, truth.category_ids)
        image_of = positions(detections.image_ids, truth.image_ids)
        for kind, score, o, d in zip(self.kind, self.score, self.object, self.detection, strict=True):
            image = truth.image[o] if o >= 0 else image_of[d]
            record = {"kind": KINDS[kind], "score": round(float(score), 4), "image_id": int(truth.image_ids[image])}
            record["file_name"] = truth.file_names[image]
            if o >= 0:
                name = truth.class_names[truth.category[o]]
                label = {"annotation_id": int(truth.annotation_ids[o]), "class": name, "bbox": truth.boxes[o].tolist()}
                record["label"] = label
            if d >= 0:
                found = {"class": truth.class_names[class_of[d]], "bbox": detections.boxes[d].tolist()}
                record["found"] = {**found, "score": float(detections.scores[d])}
            records.append(record)
        return records


def label_errors(truth: Dataset, detections: Detections, least: float = 0.1) -> LabelErrors:
    """Rank the labels that the detections contradict. Crowds, and what lies in them, are left alone.

    A detection is as trustworthy as detections of its class and score are right in this set; call that its trust. An
    object's support is the trust of the detection of its class that found it (overlap 0.5 or more), 0 without one.

    - **missing**: a detection that overlaps no object by 0.5; its trust, times the support of the object of its class
      that it overlaps by 0.1 or more, if there is one: without support rather that object is shifted.
    - **swapped**: the trust of a free detection of another class at the object's place, times its lack of support.
    - **shifted**: the same of a detection of its own class that overlaps it by 0.1 to 0.5.
    - **invented**: its lack of support, times the mean support of its class, times how little the two above say.

    An object stands in the list once, as what is most probable. Images without any detection are left out: they belong
    to no fold that was given.

    Args:
        truth: the set whose labels are in doubt.
        detections: of a detector that was not trained on these images, else it repeats their labels.
        least: suspects with a lower score are left out.
    """
    matches = match(truth, detections)
    trust, outcome = _trust(matches), matches.outcomes[0]
    support = np.zeros(len(truth))
    support[matches.taken[0][outcome == RIGHT]] = trust[outcome == RIGHT]

    found, which, overlap = overlapping(matches.box, matches.image, truth, truth.image, BACKGROUND)
    counted = (truth.iscrowd[which] == 0) & (outcome[found] == WRONG)
    found, which, overlap = found[counted], which[counted], overlap[counted]
    same, well = matches.category[found] == truth.category[which], overlap >= FOREGROUND
    alone = outcome == WRONG
    alone[found[well]] = False
    nearest = np.append(which, -1)[_largest(found, np.where(same & alone[found], overlap, 0), len(trust))]

    swap = _largest(which, np.where(~same & well, trust[found], 0), len(truth))
    shift = _largest(which, np.where(nearest[found] == which, trust[found], 0), len(truth))
    witness = np.append(found, -1)[[swap, shift]]
    against = np.append(trust, 0)[witness]
    judged = (truth.iscrowd == 0) & np.isin(truth.image, matches.image)
    sums, numbers = (np.bincount(truth.category, w, len(truth.class_names)) for w in (support * judged, judged))
    usual = (sums / np.maximum(numbers, 1))[truth.category]
    probable = np.stack([*against, usual * (1 - against.max(axis=0))]) * (1 - support) * judged
    kind = probable.argmax(axis=0)
    of_object = np.append(matches.index, -1)[np.append(witness, [[-1] * len(truth)], axis=0)[kind, range(len(truth))]]

    missing = np.where(alone, trust * np.append(support, 1)[nearest], 0)
    gone = _apart(np.flatnonzero(missing >= least), missing, matches)
    columns = (
        np.append(np.zeros(len(gone), dtype=np.int64), kind + 1),
        np.append(missing[gone], probable.max(axis=0)),
        np.append(np.full(len(gone), -1), np.arange(len(truth))),
        np.append(matches.index[gone], of_object),
    )
    order = np.argsort(-columns[1], kind="stable")
    order = order[columns[1][order] >= least]
    return LabelErrors(*(column[order] for column in columns))


def joined_folds(parts: Sequence[Detections]) -> Detections:
    """The detections of several folds as those of one set.

    Raises:
        UserError: an image stands in two of them.
    """
    known: dict[int, str] = {}
    for part in parts:
        for image in np.unique(part.image_ids).tolist():
            if image in known:
                raise UserError(
                    f"{shown(part.source)}: image_id {image} stands in {shown(known[image])} too; give the detections "
                    "of each image once, by the detector that was not trained on it"
                )
            known[image] = part.source
    return Detections.concatenate(parts)


def _trust(matches: Matches) -> np.ndarray:
    """(N,) how often detections of this class and about this score are right, never falling with the score."""
    everything, trust = matches.calibration(), np.zeros(len(matches.score))
    prior = np.nan_to_num(everything.right)
    for category in range(len(matches.truth.class_names)):
        rows = matches.of_class(category)
        own = matches.calibration(category)
        filled = everything.count > 0
        share = (np.nan_to_num(own.right) * own.count + _PRIOR * prior) / (own.count + _PRIOR)
        rising = np.maximum.accumulate(share[filled])
        if len(rising):
            trust[rows] = np.interp(matches.score[rows], everything.score[filled], rising)
    return trust


def _largest(group: np.ndarray, value: np.ndarray, number: int) -> np.ndarray:
    """(number,) where the largest value above 0 of each group stands, -1 for none."""
    order = np.argsort(value, kind="stable")
    order = order[value[order] > 0]
    place = np.full(number, -1)
    place[group[order]] = order  # the last, which is the largest, stays
    return place


def _apart(rows: np.ndarray, value: np.ndarray, matches: Matches) -> np.ndarray:
    """Those of ``rows`` that no better one of their image overlaps by 0.5, of whatever class: one for each place."""
    kept: dict[int, list[int]] = {}
    for row in rows[np.argsort(-value[rows], kind="stable")].tolist():
        others = kept.setdefault(int(matches.image[row]), [])
        if not (iou(matches.box[[row]], matches.box[others]) >= FOREGROUND).any():
            others.append(row)
    return np.array([row for of_image in kept.values() for row in of_image], dtype=np.int64)
