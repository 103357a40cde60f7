"""Box proposals in files: the paper's RPN and Fast R-CNN are two networks that share no features (Sec. 5.4).

The file is detectron2's: a pickle of ``{"ids", "boxes", "objectness_logits", "bbox_mode"}``, one array of boxes
(N, 4) in pixels of the original image for each image id. It is read without running any code from it.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Sequence

import numpy as np
from detectron2.structures import BoxMode

from ...annotations.coco import listed
from ...errors import UserError
from ...files import atomic_write
from ...weights.reading import read_pickle

logger = logging.getLogger(__name__)

_OLD_NAMES = {"indexes": "ids", "scores": "objectness_logits"}  # of Detectron, before detectron2
_PROTOCOL = 4  # the newest in which numpy's arrays need no function but the one that read_pickle knows

Proposals = tuple[list, list[np.ndarray], list[np.ndarray]]
"""Image ids, boxes (N, 4) x0, y0, x1, y1 and objectness logits (N,) of each."""


def write_proposals(path: str | os.PathLike, ids: Sequence, boxes: Sequence, logits: Sequence) -> None:
    """Write detectron2's file of proposals; boxes are x0, y0, x1, y1."""
    content = {
        "ids": list(ids),
        "boxes": list(boxes),
        "objectness_logits": list(logits),
        "bbox_mode": BoxMode.XYXY_ABS.value,
    }
    with atomic_write(path, "wb") as file:
        pickle.dump(content, file, protocol=_PROTOCOL)


def read_proposals(path: str | os.PathLike) -> Proposals:
    """Read a file of proposals, detectron2's or Detectron's.

    Raises:
        UserError: missing, torn, unsafe, or of another form.
    """
    if not os.path.isfile(path):
        raise UserError(f"proposals {path}: no such file; tools/dump_proposals.py writes it")
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"proposals {path}: holds a {type(content).__name__}, not ids, boxes and objectness_logits")
    content = {_OLD_NAMES.get(key, key): value for key, value in content.items()}
    try:
        ids, boxes, logits = (list(content[key]) for key in ("ids", "boxes", "objectness_logits"))
    except (KeyError, TypeError) as error:
        raise UserError(f"proposals {path}: no {error}; dump them again") from error
    if not len(ids) == len(boxes) == len(logits):
        raise UserError(f"proposals {path}: {len(ids)} ids, {len(boxes)} boxes, {len(logits)} logits; dump them again")
    try:
        mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
        if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            raise ValueError(f"boxes of the mode {mode.name}")
        for i, name in enumerate(ids):
            boxes[i] = np.asarray(boxes[i], dtype=np.float32).reshape(-1, 4)
            logits[i] = np.asarray(logits[i], dtype=np.float32).reshape(-1)
            if len(boxes[i]) != len(logits[i]) or not np.isfinite(boxes[i]).all() or np.isnan(logits[i]).any():
                raise ValueError(f"image {name} has {len(boxes[i])} boxes, {len(logits[i])} logits, or NaN among them")
            if mode != BoxMode.XYXY_ABS:
                boxes[i] = BoxMode.convert(boxes[i], mode, BoxMode.XYXY_ABS)
    except (ValueError, TypeError) as error:
        raise UserError(f"proposals {path}: {error}; dump them again") from error
    return ids, boxes, logits


def attach_proposals(dicts: list[dict], path: str | os.PathLike) -> list[dict]:
    """Give every dataset dict of one set its proposals, best first, under detectron2's keys.

    Raises:
        UserError: the file cannot be read, or lacks an image.
    """
    ids, boxes, logits = read_proposals(path)
    place = {str(image): i for i, image in enumerate(ids)}
    missing = [record["image_id"] for record in dicts if str(record["image_id"]) not in place]
    if missing:
        raise UserError(
            f"proposals {path}: none for {len(missing)} of {len(dicts)} images, such as {listed(missing, 3)}; "
            "dump them for this set"
        )
    for record in dicts:
        i = place[str(record["image_id"])]
        order = np.argsort(-logits[i], kind="stable")
        record["proposal_boxes"] = boxes[i][order]
        record["proposal_objectness_logits"] = logits[i][order]
        record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    logger.info("proposals for %d images from %s", len(dicts), path)
    return dicts
