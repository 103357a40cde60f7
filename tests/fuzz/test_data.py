"""Damaged JSON files, boxes and images: findings and clear errors, never anything else."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from fuzzing import damaged, fuzz, no_hang
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnext_det.annotations.check import inspect_coco, report
from resnext_det.annotations.coco import Detections, read_ground_truth
from resnext_det.detection.data.mapper import CheckedDatasetMapper
from resnext_det.errors import UserError
from resnext_det.images import POLICIES, read_header, read_image

DOCUMENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in (1, 2)],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 2.5], "area": 7.5, "iscrowd": 0} for i in (1, 2)
    ],
}
TEXT = json.dumps(DOCUMENT).encode()
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    for i in (1, 2):
        Image.new("RGB", (8, 6)).save(root / f"{i}.png")
    return root


def check_document(folder, text: bytes) -> None:
    path = folder / "data.json"
    path.write_bytes(text)
    with no_hang():
        with contextlib.suppress(UserError):
            checked = inspect_coco(path, folder, check_images=False, for_training=True, workers=1)
            report(checked)
            if not checked.errors:
                checked.dataset_dicts()
                json.dumps(checked.fixed())
        with contextlib.suppress(UserError):
            read_ground_truth(path)
        with contextlib.suppress(UserError):
            Detections.from_json(path)


@fuzz
@given(text=damaged(TEXT))
def test_damaged_json_text(folder, text):
    check_document(folder, text)


@fuzz
@given(data=st.data())
def test_json_with_odd_values(folder, data):
    document = json.loads(TEXT)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(list(DOCUMENT)))
        if data.draw(st.integers(0, 9)) == 0:
            document[key] = data.draw(values)
        elif isinstance(document[key], list) and document[key] and isinstance(document[key][-1], dict):
            field = data.draw(st.sampled_from([*DOCUMENT[key][0], "segmentation", "ignore", "supercategory"]))
            document[key][-1][field] = data.draw(values)
    check_document(folder, json.dumps(document).encode())


numbers = st.floats(-1e3, 1e3) | st.sampled_from([0.0, -0.0, 1e-30, 1e300, -1e300]) | st.integers(-9, 99)


@fuzz
@given(boxes=st.lists(st.lists(numbers, min_size=4, max_size=4), max_size=5), short=st.integers(1, 12))
def test_boxes_that_pass_the_check_reach_the_model_finite_and_inside(folder, boxes, short):
    document = json.loads(TEXT)
    document["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(boxes, start=1)
    ]
    path = folder / "boxes.json"
    path.write_text(json.dumps(document))
    with no_hang():
        checked = inspect_coco(path, folder, check_images=False, workers=1)
        if checked.errors:
            return
        mapper = CheckedDatasetMapper(True, augmentations=[T.ResizeShortestEdge(short, 64)], image_format="BGR")
        for record in checked.dataset_dicts():
            assert all(a["bbox_mode"] == BoxMode.XYWH_ABS for a in record["annotations"])
            result = mapper(record)
            tensor = result["instances"].gt_boxes.tensor
            height, width = result["image"].shape[1:]
            limit = torch.tensor([width, height, width, height])
            assert torch.isfinite(tensor).all() and (tensor >= 0).all() and (tensor <= limit).all()
            assert (tensor[:, 2:] - tensor[:, :2] >= 1 - 1e-4).all()


def encoded_image(kind: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 10, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(buffer, kind)
    return buffer.getvalue()


IMAGES = [
    encoded_image(kind, mode)
    for kind, mode in (
        ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("GIF", "P"), ("BMP", "RGB"),
        ("TIFF", "RGB"), ("WEBP", "RGB"), ("PPM", "RGB"),
    )
]  # fmt: skip


@fuzz
@given(data=st.sampled_from(IMAGES).flatmap(damaged), policy=st.sampled_from(POLICIES))
def test_damaged_images(folder, data, policy):
    path = folder / "image"
    path.write_bytes(data)
    with no_hang(), contextlib.suppress(UserError):
        read_header(path, max_megapixels=1)
    with no_hang(), contextlib.suppress(UserError):
        image = read_image(path, policy=policy, max_megapixels=1)
        assert image is None or (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3)
        assert image is not None or policy != "error"
