"""The quickstart's parts that can be looked at without training for minutes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from common import ROOT
from PIL import Image

from resnext_det import UserError
from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.classification.config import get_config
from resnext_det.commands import quickstart
from resnext_det.detection.config import setup
from resnext_det.detection.initial_weights import architecture
from resnext_det.engine.config import load_config
from resnext_det.reporting.boxes import class_color
from resnext_det.reporting.sheet import GAP, detections_sheet
from resnext_det.variants import parse_name


def test_detector_and_pretraining_are_one_network_with_one_normalisation() -> None:
    detector = setup(str(ROOT / "configs/detection/quickstart.yaml"), ["MODEL.DEVICE", "cpu"])
    pretraining = load_config(get_config(), str(ROOT / "configs/quickstart/pretrain.yaml"))
    network = parse_name(pretraining.MODEL.NAME)
    facts = architecture(detector)
    assert (facts["depth"], facts["cardinality"], facts["width"]) == (network.depth, network.cardinality, network.width)
    for key in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "STRIDE_IN_1X1"):
        assert detector.MODEL.RESNETS[key] == pretraining.MODEL[key], key
    for found, expected in (("pixel_mean", "MEAN"), ("pixel_std", "STD")):
        np.testing.assert_allclose(np.array(facts[found]) / 255, pretraining.INPUT[expected], atol=1e-4)
    assert Path(detector.MODEL.WEIGHTS).parent == Path(pretraining.OUTPUT_DIR) == quickstart.PRETRAIN
    assert Path(detector.OUTPUT_DIR) == quickstart.DETECTOR


def test_a_failed_step_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = (("the data", ("make-digits", "--train", "0")), *quickstart.STEPS[1:])
    monkeypatch.setattr(quickstart, "STEPS", steps)
    with pytest.raises(UserError, match="make-digits ended with code 2"):
        quickstart.main([])


def test_sheet_shows_each_image_with_its_confident_boxes(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "white").save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "white").save(tmp_path / "b.png")
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    truth = read_ground_truth({"images": images, "categories": [{"id": 5, "name": "x"}, {"id": 9, "name": "y"}]})
    records = [
        {"image_id": 1, "category_id": 9, "bbox": [10, 4, 20, 10], "score": 0.9},
        {"image_id": 2, "category_id": 5, "bbox": [10, 4, 20, 10], "score": 0.1},
    ]
    detections = Detections.from_records(json.loads(json.dumps(records)))
    sheet = np.asarray(detections_sheet(truth, detections, tmp_path, [1, 2], columns=1, width=80))
    assert sheet.shape == (40 + 60 + 3 * GAP, 80 + 2 * GAP, 3)
    first, second = sheet[GAP : GAP + 40], sheet[2 * GAP + 40 :]
    assert (first == class_color(1)).all(2).any(), "the box of class y in its color"
    assert (second == 255).all(), "nothing below the threshold"
