"""Our backbone under detectron2's other detectors, by stock keys alone: equal to stock, trained and evaluated."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image
from tiny import FPN

from resnext_det import UserError, create_model
from resnext_det.detection import ResNeXtBackbone
from resnext_det.weights import save_checkpoint

# The keys by which these differ from detectron2's defaults, as its own Base-*.yaml have them.
C4 = """
MODEL:
  BACKBONE: {NAME: build_resnext_backbone}
  ROI_HEADS: {NAME: ResNeXtC4ROIHeads}
  ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}
"""
DETECTORS = {
    "C4": [C4],
    "Mask C4": [C4, "MODEL: {MASK_ON: True, ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, CONV_DIM: 16}}"],
    "DC5": [
        """
MODEL:
  BACKBONE: {NAME: build_resnext_backbone}
  RESNETS: {OUT_FEATURES: [res5], RES5_DILATION: 2}
  RPN: {IN_FEATURES: [res5]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [res5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, FC_DIM: 32, POOLER_RESOLUTION: 7}
"""
    ],
    "FPN": [FPN],
    "Mask FPN": [FPN, "MODEL: {MASK_ON: True, ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, CONV_DIM: 16}}"],
    "Keypoint FPN": [FPN, "MODEL: {KEYPOINT_ON: True, ROI_KEYPOINT_HEAD: {NUM_KEYPOINTS: 3, CONV_DIMS: [16]}}"],
    "RetinaNet": [
        """
MODEL:
  META_ARCHITECTURE: RetinaNet
  BACKBONE: {NAME: build_retinanet_resnext_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res3, res4, res5]}
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[32, 40, 51], [64, 81, 102], [128, 161, 203], [256, 323, 406], [512, 645, 813]]}
  RETINANET: {IOU_THRESHOLDS: [0.4, 0.5], IOU_LABELS: [0, -1, 1], SMOOTH_L1_LOSS_BETA: 0.0, NUM_CONVS: 1}
"""
    ],
}
SMALL = """
MODEL:
  DEVICE: cpu
  RESNETS: {DEPTH: 50, NUM_GROUPS: 4, WIDTH_PER_GROUP: 2, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8, NORM: BN}
  BACKBONE: {FREEZE_AT: 0}
  RPN: {PRE_NMS_TOPK_TRAIN: 100, POST_NMS_TOPK_TRAIN: 40, PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 16, NUM_CLASSES: 2, SCORE_THRESH_TEST: 0.0}
  ROI_KEYPOINT_HEAD: {MIN_KEYPOINTS_PER_IMAGE: 1}
  RETINANET: {NUM_CLASSES: 2, SCORE_THRESH_TEST: 0.0, TOPK_CANDIDATES_TEST: 50}
INPUT: {MIN_SIZE_TRAIN: [96], MAX_SIZE_TRAIN: 128, MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 128}
SOLVER: {IMS_PER_BATCH: 2}
DATALOADER: {NUM_WORKERS: 0}
DATASETS: {TRAIN: [other_heads], TEST: [other_heads]}
"""


def config(name: str):
    cfg = get_cfg()
    for text in (SMALL, *DETECTORS[name]):
        cfg.merge_from_other_cfg(cfg.load_cfg(text))
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05] * 3
    return cfg


@pytest.fixture(scope="module")
def made_set(tmp_path_factory: pytest.TempPathFactory):
    """Four images with two boxes each, with masks and keypoints."""
    folder = tmp_path_factory.mktemp("other_heads")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": 128, "height": 96})
        for category in (1, 2):
            x, y = rng.integers(0, 50, 2).tolist()
            w, h = rng.integers(30, 45, 2).tolist()
            middle = [x + w / 2, y + h / 2, 2]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i + 1, "category_id": category, "bbox": [x, y, w, h],
                 "area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                 "keypoints": [x + 1, y + 1, 2, *middle, x + w - 1, y + h - 1, 2], "num_keypoints": 3}
            )  # fmt: skip
    categories = [{"id": c, "name": name, "keypoints": ["a", "b", "c"]} for c, name in ((1, "one"), (2, "two"))]
    file = folder / "set.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}), "utf-8")
    register_coco_instances("other_heads", {}, str(file), str(folder))
    metadata = MetadataCatalog.get("other_heads")
    metadata.set(keypoint_names=["a", "b", "c"], keypoint_flip_map=[], keypoint_connection_rules=[])
    yield "other_heads"
    DatasetCatalog.remove("other_heads")
    MetadataCatalog.remove("other_heads")


@pytest.mark.parametrize("name", DETECTORS)
def test_trains_and_evaluates(name: str, made_set: str, tmp_path) -> None:
    cfg = config(name)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    weight = getattr(model.backbone, "bottom_up", model.backbone).res4[0].conv2.weight
    before = weight.detach().clone()
    with EventStorage():
        for data, _ in zip(build_detection_train_loader(cfg), range(2), strict=False):
            losses = model(data)
            total = sum(losses.values())
            assert math.isfinite(total.item())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    assert {"Mask": "loss_mask", "Keypoint": "loss_keypoint"}.get(name.split()[0], "loss_box_reg") in losses
    assert not torch.equal(before, weight)

    tasks = {"bbox"} | {task for word, task in (("Mask", "segm"), ("Keypoint", "keypoints")) if word in name}
    evaluator = COCOEvaluator(made_set, tasks=tuple(tasks), distributed=False, output_dir=str(tmp_path),
                              kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS, use_fast_impl=False)  # fmt: skip
    results = inference_on_dataset(model, build_detection_test_loader(cfg, made_set), evaluator)
    assert results.keys() == tasks
    assert all(0 <= results[task]["AP"] <= 100 for task in tasks)


@pytest.mark.parametrize("name", DETECTORS)
def test_equals_stock_on_the_same_weights(name: str) -> None:
    """The same detector with detectron2's own backbone (and head) takes our weights and returns the same."""
    cfg = config(name)
    theirs = copy.deepcopy(cfg)
    theirs.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("resnext", "resnet")
    theirs.MODEL.ROI_HEADS.NAME = cfg.MODEL.ROI_HEADS.NAME.replace("ResNeXtC4ROIHeads", "Res5ROIHeads")
    ours, stock = build_model(cfg).eval(), build_model(theirs).eval()
    trunks = [getattr(model.backbone, "bottom_up", model.backbone) for model in (ours, stock)]
    assert [isinstance(trunk, ResNeXtBackbone) for trunk in trunks] == [True, False]
    stock.load_state_dict(ours.state_dict())
    x = torch.rand(3, 96, 128) * 255
    with torch.no_grad():
        expected, maps = stock([{"image": x}])[0]["instances"], stock.backbone(x[None])
        for level, value in ours.backbone(x[None]).items():
            torch.testing.assert_close(value, maps[level], rtol=1e-4, atol=1e-4)
        found = ours([{"image": x}])[0]["instances"]
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    if "Mask" in name:
        assert (found.pred_masks == expected.pred_masks).float().mean() > 0.999


@pytest.mark.parametrize("name", ["C4", "FPN"])
def test_detectron2s_own_checkpointer_finds_every_place(name: str, tmp_path) -> None:
    """A pretrained classifier into a detector of a project that never calls our loader."""
    cfg = config(name)
    arguments = {"stem_out_channels": 8, "res2_out_channels": 8}
    classifier = create_model("resnext50_4x2d", num_classes=5, **arguments)
    for tensor in classifier.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    save_checkpoint(tmp_path / "pretrained.pth", classifier.state_dict(), {})
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(tmp_path / "pretrained.pth"))
    state, trunk = model.state_dict(), classifier.state_dict()
    prefix = "backbone." if name == "C4" else "backbone.bottom_up."
    places = {key: f"{'roi_heads.' if name == 'C4' and key.startswith('res5') else prefix}{key}" for key in trunk}
    loaded = [key for key in trunk if not key.startswith("fc.")]
    assert len(loaded) > 300
    for key in loaded:
        assert torch.equal(state[places[key]], trunk[key]), key


def test_pyramid_over_maps_that_are_not_there() -> None:
    cfg = config("FPN")
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    with pytest.raises(UserError, match="MODEL.FPN.IN_FEATURES .* only take what the backbone returns"):
        build_model(cfg)
    cfg = config("RetinaNet")
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    with pytest.raises(UserError, match="P6 is made from res5"):
        build_model(cfg)
