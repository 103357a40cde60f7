"""Small data sets of drawn shapes and small configurations for them: for the self-test and the project's own tests."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

from ..files import write_json

SHAPES = ("box", "disc")
SIDE = 64  # pixels; images are SIDE wide and SIDE or 3/4 SIDE high


def draw_detection_set(folder: Path, count: int, seed: int = 0) -> tuple[Path, Path]:
    """A COCO-format set of :data:`SHAPES` on noise; returns (json file, image folder), both inside ``folder``."""
    rng = np.random.default_rng(seed)
    image_root = folder / "images"
    image_root.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(1, count + 1):
        width, height = SIDE, SIDE if number % 2 else SIDE * 3 // 4
        canvas = Image.fromarray(rng.integers(60, 120, (height, width, 3), dtype=np.uint8))
        for _ in range(2):
            shape, size = int(rng.integers(2)), int(rng.integers(14, 28))
            x, y = int(rng.integers(width - size)), int(rng.integers(height - size))
            _draw(canvas, shape, x, y, size)
            box = {"bbox": [x, y, size, size], "area": size * size, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": shape + 1, **box})
        name = f"{number:04d}.png"
        canvas.save(image_root / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    categories = [{"id": i, "name": name} for i, name in enumerate(SHAPES, start=1)]
    json_file = folder / "instances.json"
    write_json(json_file, {"images": images, "annotations": annotations, "categories": categories})
    return json_file, image_root


def draw_classes(folder: Path, per_class: int, seed: int = 0, side: int = 32) -> Path:
    """One folder of images for each of :data:`SHAPES`; returns ``folder``."""
    rng = np.random.default_rng(seed)
    for shape, name in enumerate(SHAPES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            canvas = Image.fromarray(rng.integers(60, 120, (side, side, 3), dtype=np.uint8))
            size = int(rng.integers(side // 2, side - 2))
            x, y = rng.integers(0, side - size, 2).tolist()
            _draw(canvas, shape, x, y, size)
            canvas.save(folder / name / f"{number:04d}.png")
    return folder


def _draw(canvas: Image.Image, shape: int, x: int, y: int, size: int) -> None:
    draw = ImageDraw.Draw(canvas)
    corners = (x, y, x + size - 1, y + size - 1)
    if SHAPES[shape] == "box":
        draw.rectangle(corners, fill=(230, 40, 40))
    else:
        draw.ellipse(corners, fill=(40, 200, 230))


def detection_config(folder: Path, iterations: int, images: int = 16) -> Path:
    """Data and the YAML of a ResNeXt-14 C4 detector that trains in seconds; OUTPUT_DIR is ``folder/run``."""
    json_file, image_root = draw_detection_set(folder / "shapes", images)
    name = f"shapes_{zlib.crc32(str(folder).encode()):08x}"  # names are global
    config = {
        "VERSION": 2,
        "OUTPUT_DIR": str(folder / "run"),
        "SEED": 1,
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "DEVICE": "cpu",
            "WEIGHTS": "",
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
            "BACKBONE": {"NAME": "build_resnext_backbone", "FREEZE_AT": 0},
            "RESNETS": {
                "DEPTH": 14,
                "NUM_GROUPS": 4,
                "WIDTH_PER_GROUP": 2,
                "STEM_OUT_CHANNELS": 8,
                "RES2_OUT_CHANNELS": 16,
                "OUT_FEATURES": ["res4"],
                "NORM": "BN",
                "STRIDE_IN_1X1": False,
            },
            "ANCHOR_GENERATOR": {"SIZES": [[16, 24]], "ASPECT_RATIOS": [[1.0]]},
            "RPN": {
                "BATCH_SIZE_PER_IMAGE": 32,
                "PRE_NMS_TOPK_TRAIN": 100,
                "POST_NMS_TOPK_TRAIN": 20,
                "PRE_NMS_TOPK_TEST": 50,
                "POST_NMS_TOPK_TEST": 10,
            },
            "ROI_HEADS": {"NAME": "ResNeXtC4ROIHeads", "NUM_CLASSES": len(SHAPES), "BATCH_SIZE_PER_IMAGE": 16},
            "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 14},
        },
        "INPUT": {
            "FORMAT": "RGB",
            "MIN_SIZE_TRAIN": [SIDE - 8, SIDE],
            "MAX_SIZE_TRAIN": 2 * SIDE,
            "MIN_SIZE_TEST": SIDE,
            "MAX_SIZE_TEST": 2 * SIDE,
        },
        "DATASETS": {
            "REGISTER": [[name, str(json_file), str(image_root)]],
            "TRAIN": [name],
            "TEST": [name],
        },
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {
            "IMS_PER_BATCH": 2,
            "BASE_LR": 0.01,
            "MAX_ITER": iterations,
            "STEPS": [],
            "WARMUP_ITERS": 0,
            "CHECKPOINT_PERIOD": 2,
        },
        "TEST": {"EVAL_PERIOD": 0},
    }
    return _write_yaml(folder / "detection.yaml", config)


def classification_config(folder: Path, epochs: int, per_class: int = 16) -> Path:
    """Data and the YAML of a small ResNeXt that learns to tell :data:`SHAPES` apart; OUTPUT_DIR is ``folder/run``."""
    config = {
        "OUTPUT_DIR": str(folder / "run"),
        "SEED": 1,
        "MODEL": {"NAME": "resnext14_4x2d", "DEVICE": "cpu", "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 16},
        "DATASETS": {
            "TRAIN": str(draw_classes(folder / "train", per_class)),
            "TEST": str(draw_classes(folder / "val", 4, seed=1)),
        },
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"CROP_SIZE": 32},
        "TEST": {"SHORT_SIDE": 32, "CROP_SIZE": 32, "BATCH_SIZE": 8},
        "SOLVER": {"EPOCHS": epochs, "IMS_PER_BATCH": 8, "REFERENCE_BATCH": 8, "BASE_LR": 0.02, "STEPS": []},
    }
    return _write_yaml(folder / "classification.yaml", config)


def _write_yaml(path: Path, config: dict) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path
