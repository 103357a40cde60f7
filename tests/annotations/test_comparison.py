"""The bootstrap's AP of a sample of images is what pycocotools gives for the images so drawn."""

from __future__ import annotations

import numpy as np
import pytest
from coco_sets import pycocotools, random_set

from resnext_det import UserError
from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.annotations.comparison import IOUS, compare, summary, weighted_precision
from resnext_det.annotations.thresholds import match
from resnext_det.commands.evaluate import _short, main
from resnext_det.files import write_json


def drawn(truth: dict, detections: list[dict], times: dict[int, int]) -> tuple[dict, list[dict]]:
    """The set in which each image stands so many times, under new ids."""
    images, annotations, found = [], [], []
    for image in sorted(truth["images"], key=lambda image: image["id"]):
        for _ in range(times[image["id"]]):
            number = len(images) + 1
            images.append({**image, "id": number})
            here = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
            annotations += [{**a, "id": len(annotations) + i, "image_id": number} for i, a in enumerate(here, start=1)]
            found += [{**d, "image_id": number} for d in detections if d["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, found


def test_ap_of_a_weighted_set_is_ap_of_the_drawn_set():
    truth, detections = random_set(7, images=25)
    rng = np.random.default_rng(7)
    for record, score in zip(detections, rng.permutation(len(detections)).tolist(), strict=True):
        record["score"] = (score + 1) / (len(detections) + 1)
    table = read_ground_truth(truth)
    matches = match(table, Detections.from_records(detections), ious=IOUS)
    weights = np.stack(
        [np.ones(25, dtype=int), *(np.bincount(rng.integers(0, 25, 25), minlength=25) for _ in range(3))]
    )
    ours = weighted_precision(matches, weights.T)
    assert weights.max() > 2
    for sample, times in enumerate(weights):
        theirs = pycocotools(
            *drawn(truth, detections, dict(zip(table.image_ids.tolist(), times.tolist(), strict=True)))
        )
        expected = theirs.eval["precision"][:, :, :, 0, -1].mean(axis=1).T  # classes, overlaps
        expected[expected < 0] = np.nan
        assert np.allclose(ours[:, :, sample], expected, atol=1e-12, equal_nan=True)
    assert np.isnan(ours).any() and (ours > 0).any()


def test_the_interval_of_a_difference(tmp_path, capsys):
    truth, detections = random_set(8, images=30)
    table = read_ground_truth(truth)
    first = Detections.from_records(detections)
    same = compare(table, first, first, samples=20)
    assert same["AP"].value == same["AP"].low == same["AP"].high == 0 and same["AP"].better == 0.5
    rng = np.random.default_rng(0)
    worse = Detections.from_records(detections)
    worse.boxes = worse.boxes + rng.normal(0, 0.1, worse.boxes.shape) * worse.boxes[:, [2, 3, 2, 3]]
    worse.boxes[:, 2:] = np.abs(worse.boxes[:, 2:])
    found = compare(table, first, worse, samples=60)
    assert found["AP"].low <= found["AP"].value <= found["AP"].high < 0 and found["AP"].better == 0
    assert repr(found) == repr(compare(table, first, worse, samples=60)), "the same seed, the same samples"
    assert found["AP"].low != compare(table, first, worse, samples=60, seed=1)["AP"].low
    assert np.isnan(found["AP-class 24"].value) and np.isnan(found["AP-class 24"].low)
    assert len(summary(list(found.items()))) == 2 + 2 * 9
    write_json(tmp_path / "truth.json", truth)
    first.write_json(tmp_path / "a.json")
    worse.write_json(tmp_path / "b.json")
    files = ["--gt", str(tmp_path / "truth.json"), "--dt", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    main([*files, "--samples", "60", "--out", str(tmp_path / "results.json")])
    printed = capsys.readouterr().out
    assert f"{found['AP50'].value:+8.2f}  [{found['AP50'].low:+.2f}, {found['AP50'].high:+.2f}]" in printed
    with pytest.raises(UserError, match="compares boxes"):
        main([*files, "--iou-type", "segm"])


def test_models_are_named_by_what_tells_their_files_apart():
    assert _short(["a/one/inference/r.json", "a/two/inference/r.json"]) == ["one", "two"]
    assert _short(["a/one.json"]) == ["one.json"] and _short(["x/a.json", "x/b.json"]) == ["a.json", "b.json"]
    assert _short(["r.json", "a/r.json"]) == ["r.json", "a/r.json"]
    assert _short(["r.json", "./r.json"]) == ["1: r.json", "2: ./r.json"]
