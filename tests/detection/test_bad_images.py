"""Images of odd shapes through a whole detector, and sets whose images all lie or all stand."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from resnext_det.detection.config import setup
from resnext_det.detection.data.checked_sets import check_sets_from_config
from resnext_det.detection.data.loaders import register_sets, train_loader_from_config
from resnext_det.makers.synthetic import detection_config


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    cfg = setup(str(detection_config(tmp_path_factory.mktemp("detector"), 1, images=2)))
    torch.manual_seed(0)
    return build_model(cfg).eval()


@pytest.mark.parametrize(("height", "width"), [(10, 10), (1, 40), (40, 1), (1, 1), (64, 64)])
def test_case_37_a_detector_takes_tiny_and_thin_images(detector, height, width):
    with torch.no_grad():
        (result,) = detector([{"image": torch.zeros(3, height, width, dtype=torch.uint8), "height": 9, "width": 7}])
    boxes = result["instances"].pred_boxes.tensor
    assert result["instances"].image_size == (9, 7) and torch.isfinite(boxes).all()
    assert (boxes >= 0).all() and (boxes <= torch.tensor([7.0, 9.0, 7.0, 9.0])).all()


def test_case_37_no_proposals_is_an_empty_result(detector, monkeypatch):
    monkeypatch.setattr(detector.proposal_generator, "min_box_size", 1e6)
    with torch.no_grad():
        (result,) = detector([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    assert len(result["instances"]) == 0


@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
def test_case_38_images_of_one_orientation_make_batches(tmp_path, size):
    cfg = setup(str(detection_config(tmp_path, 1, images=5)))
    json_file, image_root = tmp_path / "shapes" / "instances.json", tmp_path / "shapes" / "images"
    document = json.loads(json_file.read_text())
    for image in document["images"]:
        image.update(width=size[0], height=size[1])
        Image.new("RGB", size).save(image_root / image["file_name"])
    document["annotations"] = [{**a, "bbox": [4, 4, 20, 20]} for a in document["annotations"]]
    json_file.write_text(json.dumps(document))
    register_sets(cfg.DATASETS.REGISTER)
    check_sets_from_config(cfg, training=True)
    batches = iter(train_loader_from_config(cfg, 0))
    seen = {d["image_id"] for _ in range(5) for d in next(batches)}
    assert seen == {1, 2, 3, 4, 5}
