"""One detection of every kind, worked out by hand."""

from __future__ import annotations

import numpy as np

from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.error_kinds import KINDS, error_kinds


def test_one_detection_of_every_kind():
    places = [(0, 1, 0), (100, 1, 0), (200, 2, 0), (300, 1, 1), (400, 1, 0), (500, 1, 0)]
    truth = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": category, "bbox": [x, 0, 50, 50], "iscrowd": crowd}
            for i, (x, category, crowd) in enumerate(places)
        ],
    }
    cases = [
        ("correct", 1, [2, 0, 50, 50], 0.9),
        ("duplicate", 1, [0, 0, 50, 50], 0.8),  # fits better, and comes second
        ("localisation", 1, [130, 0, 50, 50], 0.7),
        ("confusion", 1, [200, 0, 50, 50], 0.6),
        ("ignored", 1, [310, 10, 20, 20], 0.5),
        ("both", 2, [430, 0, 50, 50], 0.4),
        ("background", 1, [700, 0, 50, 50], 0.3),
    ]
    records = [{"image_id": 1, "category_id": c, "bbox": box, "score": s} for _, c, box, s in cases]
    records.append({"image_id": 2, "category_id": 1, "bbox": [0, 0, 50, 50], "score": 0.9})  # another image
    order = np.random.default_rng(0).permutation(len(records))
    found = error_kinds(read_ground_truth(truth), Detections.from_records([records[i] for i in order]))
    names = [KINDS[kind] for kind in found.kinds[np.argsort(order)]]
    assert names == [name for name, *_ in cases] + ["background"]
    # 100 and 200 are pointed at, 300 is a crowd; 400 has only a detection of the wrong class and place
    assert found.missed.tolist() == [False, False, False, False, True, True]
    assert found.counts()["missed"] == 2 and sum(found.counts().values()) == len(records) + 2


def test_nothing_detected_and_nothing_there():
    truth = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": []}
    assert sum(error_kinds(read_ground_truth(truth), Detections.empty()).counts().values()) == 0
    truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]
    assert error_kinds(read_ground_truth(truth), Detections.empty()).counts()["missed"] == 1
