"""Boxes that resizing loses, images to skip, and crowds: what reaches the model is finite and whole."""

import resnext_det  # noqa: F401, I001 (first: it makes detectron2 importable)
import copy

import numpy as np
import pytest
import torch
from detectron2.data import MapDataset
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from resnext_det.detection.data.mapper import CheckedDatasetMapper, ResizeShortestEdge
from resnext_det.errors import UserError


def record(path, boxes, width=100, height=50, iscrowd=0) -> dict:
    Image.new("RGB", (width, height), (200, 100, 0)).save(path)
    common = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": iscrowd}
    annotations = [{"bbox": box, **common} for box in boxes]
    return {"file_name": str(path), "width": width, "height": height, "image_id": 1, "annotations": annotations}


def mapper(is_train=True, **options) -> CheckedDatasetMapper:
    return CheckedDatasetMapper(is_train, augmentations=[T.ResizeShortestEdge(25, 1000)], image_format="BGR", **options)


def test_case_18_sub_pixel_box_lost_in_resizing_is_dropped(tmp_path):
    data = mapper()(record(tmp_path / "a.png", [[10, 10, 1.5, 20], [10, 10, 20, 20]]))
    assert data["image"].shape == (3, 25, 50)
    assert data["instances"].gt_boxes.tensor.tolist() == [[5, 5, 15, 15]]
    assert torch.isfinite(data["instances"].gt_boxes.tensor).all()


def test_case_22_and_23_no_objects_and_crowds_only(tmp_path):
    assert len(mapper()(record(tmp_path / "a.png", []))["instances"]) == 0
    assert len(mapper()(record(tmp_path / "a.png", [[1, 1, 9, 9]], iscrowd=1))["instances"]) == 0


def test_case_31_broken_image_is_skipped_and_counted_in_training_only(tmp_path):
    broken = record(tmp_path / "a.png", [])
    (tmp_path / "a.png").write_bytes(b"not an image")
    training = mapper(broken_images="skip")
    assert training(broken) is None and training.skipped.value == 1
    for strict in (mapper(), mapper(is_train=False, broken_images="skip")):
        with pytest.raises(UserError, match="a.png"):
            strict(broken)


@pytest.mark.parametrize(("width", "height"), [(10, 10), (1, 40), (40, 1)])
def test_case_37_tiny_and_thin_images(tmp_path, width, height):
    data = mapper(is_train=False)(record(tmp_path / "a.png", [], width, height))
    assert min(data["image"].shape) > 0 and "instances" not in data


@pytest.mark.parametrize("is_train", [True, False])
def test_case_37_resizing_keeps_a_pixel_and_the_boxes(tmp_path, is_train):
    resize = T.ResizeShortestEdge([20, 25], 100, "choice")
    mapping = CheckedDatasetMapper(is_train, augmentations=[T.RandomFlip(1.0), resize], image_format="BGR")
    wide = mapping(record(tmp_path / "a.png", [[1000, 0, 400, 2], [1000, 0, 400, 1]], 5000, 2))
    assert wide["image"].shape == (3, 1, 100)
    high = mapping(record(tmp_path / "b.png", [[0, 1000, 2, 400]], 2, 5000))
    assert high["image"].shape == (3, 100, 1)
    if is_train:
        assert wide["instances"].gt_boxes.tensor.tolist() == [[72, 0, 80, 1]], "one of half a pixel is left out"
        assert high["instances"].gt_boxes.tensor.tolist() == [[0, 20, 1, 28]]


def test_resizing_is_otherwise_detectron2s():
    stock = T.ResizeShortestEdge([20, 25, 30], 60, "choice", Image.BICUBIC)
    ours = ResizeShortestEdge.instead_of(stock)
    for width in (10, 55, 200):
        pixels = np.random.default_rng(width).integers(0, 255, (40, width, 3), dtype=np.uint8)
        for number in range(3):
            found = []
            for resize in (stock, ours):
                np.random.seed(number)
                found.append(resize.get_transform(pixels).apply_image(pixels))
            assert np.array_equal(*found)
    flip = T.RandomFlip()
    assert ResizeShortestEdge.instead_of(flip) is flip and ResizeShortestEdge.instead_of(ours) is ours


def test_masks_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match="a.png: an object without segmentation, and MODEL.MASK_ON is True"):
        mapper(use_instance_mask=True)(record(tmp_path / "a.png", [[1, 1, 9, 9]]))


def test_a_record_stays_as_it_is(tmp_path):
    """Data sets keep their records for the next epoch."""
    given = record(tmp_path / "a.png", [[10, 10, 20, 20]])
    kept = copy.deepcopy(given)
    boxes = [mapper()(given)["instances"].gt_boxes.tensor.tolist() for _ in range(2)]
    assert given == kept and boxes[0] == boxes[1] == [[5, 5, 15, 15]]


def test_another_size_than_the_data_set_says_is_an_error(tmp_path):
    data = record(tmp_path / "a.png", [])
    data["width"] = 99
    with pytest.raises(UserError, match="is 100x50, but its data set says width 99"):
        mapper()(data)


def test_case_31_the_loader_replaces_a_skipped_image(tmp_path):
    whole, broken = record(tmp_path / "a.png", []), record(tmp_path / "b.png", [])
    (tmp_path / "b.png").write_bytes(b"not an image")
    skipping = mapper(broken_images="skip")
    loader = MapDataset([whole, broken], skipping)
    assert loader[1]["file_name"] == whole["file_name"] and skipping.skipped.value == 1
