"""Made-up sets in COCO's form, and pycocotools' outcome of them: what tests of evaluation share."""

from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def random_set(seed: int, first_id: int = 0, images: int = 60) -> tuple[dict, list[dict]]:
    """Some 4,000 detections: crowds, id 0, gaps in the ids, equal scores, more than 100 of a class, empty classes."""
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(np.arange(0, 10**6, 7), images, replace=False).tolist()
    categories = (np.arange(9) * 3 + first_id).tolist()
    annotations, detections = [], []

    def box() -> list[float]:
        size, shape = np.exp(rng.uniform(np.log(4), np.log(300))), np.exp(rng.normal(0, 0.4))
        return [float(v) for v in (rng.uniform(0, 400), rng.uniform(0, 300), size * shape, size / shape)]

    def detection(image: int, category: int, found: list[float], digits: int = 2) -> dict:
        score = float(np.round(rng.random(), digits))
        return {"image_id": image, "category_id": category, "bbox": found, "score": score}

    for image in image_ids:
        for _ in range(int(rng.integers(0, 12))):
            real, category = box(), int(rng.choice(categories[:-1]))
            area, crowd = real[2] * real[3] * float(rng.uniform(0.4, 1)), int(rng.random() < 0.1)
            record = {"image_id": image, "category_id": category, "bbox": real, "area": area, "iscrowd": crowd}
            annotations.append({"id": len(annotations) + first_id, **record})
            for _ in range(int(rng.integers(0, 6))):
                near = np.abs(np.array(real) + rng.normal(0, 0.08, 4) * np.array(real[2:] * 2)).tolist()
                detections.append(detection(image, category if rng.random() < 0.9 else categories[-1], near))
        for _ in range(int(rng.integers(0, 60))):
            detections.append(detection(image, int(rng.choice(categories[::2])), box()))
        if rng.random() < 0.1:
            detections += [detection(image, categories[0], box(), digits=1) for _ in range(250)]
    truth = {
        "images": [{"id": i, "width": 800, "height": 700} for i in image_ids],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": annotations,
    }
    return truth, [detections[i] for i in rng.permutation(len(detections))]


def pycocotools(
    truth: dict, detections: list[dict], iou_type: str = "bbox", limits: list[int] | None = None
) -> COCOeval:
    """The oracle. Annotations are numbered from 1: pycocotools takes a match with annotation 0 for none."""
    truth = copy.deepcopy(truth)
    for number, record in enumerate(truth["annotations"], start=1):
        record["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO()
        table.dataset = truth
        table.createIndex()
        evaluation = COCOeval(table, table.loadRes(copy.deepcopy(detections)), iou_type)
        evaluation.params.maxDets = limits or evaluation.params.maxDets
        evaluation.evaluate()
        evaluation.accumulate()
        if limits is None:
            evaluation.summarize()
    return evaluation
