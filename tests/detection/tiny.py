"""A detector small enough to train in a test, and images of red and blue rectangles to train it on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

BASE = Path(__file__).resolve().parents[2] / "configs" / "detection" / "Base-RCNN-C4.yaml"

CONFIG = f"""
_BASE_: {BASE}
MODEL:
  DEVICE: cpu
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{DEPTH: 14, NUM_GROUPS: 2, WIDTH_PER_GROUP: 4, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, NORM: BN}}
  ANCHOR_GENERATOR: {{SIZES: [[16, 32]], ASPECT_RATIOS: [[1.0]]}}
  RPN: {{BATCH_SIZE_PER_IMAGE: 32, PRE_NMS_TOPK_TRAIN: 100, POST_NMS_TOPK_TRAIN: 40, PRE_NMS_TOPK_TEST: 100,
        POST_NMS_TOPK_TEST: 30}}
  ROI_HEADS: {{NUM_CLASSES: 2, BATCH_SIZE_PER_IMAGE: 16, SCORE_THRESH_TEST: 0.0}}
  ROI_BOX_HEAD: {{POOLER_RESOLUTION: 4}}
INPUT: {{MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 96, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, BASE_LR: 0.01, MAX_ITER: 4, STEPS: [], WARMUP_ITERS: 0, CHECKPOINT_PERIOD: 1000}}
TEST: {{EVAL_PERIOD: 0}}
SEED: 1
"""

FPN = """
MODEL:
  BACKBONE: {NAME: build_resnext_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, FC_DIM: 32, POOLER_RESOLUTION: 7}
"""
"""Over a config of C4: the pyramid of detectron2's Base-RCNN-FPN.yaml, small."""


def write_set(
    folder: Path, name: str, images: int, annotations: bool = True, *, masks: bool = False, keypoints: int = 0
) -> tuple[str, str]:
    """Write a COCO-format set of ``images`` images; returns (json file, image folder)."""
    rng = np.random.default_rng(len(name))
    image_root = folder / name
    image_root.mkdir(parents=True)
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}],
    }
    for i in range(images):
        pixels = rng.integers(90, 130, (64, 80, 3)).astype(np.uint8)
        for kind in range(2):
            w, h = rng.integers(14, 30, 2)
            x, y = rng.integers(0, 39 - w) + 40 * kind, rng.integers(0, 63 - h)
            pixels[y : y + h, x : x + w] = (230, 20, 20) if kind == 0 else (20, 20, 230)
            number = len(content["annotations"]) + 1
            box = [int(v) for v in (x, y, w, h)]
            content["annotations"].append(
                {"id": number, "image_id": i + 1, "category_id": (3, 8)[kind], "bbox": box, "area": box[2] * box[3],
                 "iscrowd": 0}
            )  # fmt: skip
            if masks:
                corners = [box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]
                content["annotations"][-1]["segmentation"] = [corners]
            if keypoints:
                points = [box[0] + 3, box[1] + 3, 2] * keypoints
                content["annotations"][-1] |= {"keypoints": points, "num_keypoints": keypoints}
        Image.fromarray(pixels).save(image_root / f"{i}.png")
        content["images"].append({"id": i + 1, "file_name": f"{i}.png", "width": 80, "height": 64})
    if not annotations:
        del content["annotations"]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path), str(image_root)


def write_paper_inputs(folder: Path) -> str:
    """Write ``folder/set`` as COCO's folders are; returns settings under which a row of the paper trains in seconds."""
    for name in ("train", "val"):
        file, _ = write_set(folder / "set", name, 3)
        (folder / "set" / "annotations").mkdir(exist_ok=True)
        Path(file).rename(folder / "set" / "annotations" / f"instances_{name}.json")
    settings = CONFIG.split("\n", 2)[2].replace("MAX_ITER: 4", "MAX_ITER: 2, REFERENCE_BATCH: 0")
    widths = ("NUM_GROUPS: 2, ", "WIDTH_PER_GROUP: 4, ", "STEM_OUT_CHANNELS: 8, ", "RES2_OUT_CHANNELS: 16, ")
    for of_the_row in (*widths, "NUM_CLASSES: 2, "):
        settings = settings.replace(of_the_row, "")
    return settings


class TinyRun:
    """Two registered sets under names of their own, and configurations over them."""

    def __init__(self, folder: Path, **kinds: object) -> None:
        self.folder = folder
        self.file = folder / "tiny.yaml"
        self.file.write_text(CONFIG, encoding="utf-8")
        self.train, self.test = f"{folder}_train", f"{folder}_test"
        self.sets = [
            [self.train, *write_set(folder, "train", 6, **kinds)],
            [self.test, *write_set(folder, "test", 3, **kinds)],
        ]

    def options(self, output: str, *more: object) -> list[str]:
        """``KEY VALUE`` pairs: the sets, OUTPUT_DIR under the folder, and ``more``."""
        pairs = ["DATASETS.REGISTER", self.sets, "DATASETS.TRAIN", (self.train,), "DATASETS.TEST", (self.test,)]
        return [str(v) for v in (*pairs, "OUTPUT_DIR", self.folder / output, *more)]

    def config(self, output: str, *more: object):
        from resnext_det.detection.config import setup

        return setup(str(self.file), self.options(output, *more))
