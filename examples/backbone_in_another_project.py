"""A ResNeXt in a detectron2 project of your own: `import resnext_det`, one backbone name, and stock keys.

Everything else here is plain detectron2, the training loop of its tools/plain_train_net.py included. Four detectors,
each trained for a few iterations and evaluated:

    python backbone_in_another_project.py --train instances_train2017.json train2017/ \\
                                          --test instances_val2017.json val2017/ --detector c4

The networks are small and start from random weights, to show the wiring within seconds. For real use delete the
section "small" and give MODEL.WEIGHTS a file that `resnext-det convert` has written: detectron2's own checkpointer
finds the places of its tensors.
"""

# Registers the backbones and the C4 head. First, because it also lets detectron2 0.6 import beside a newer Pillow.
import resnext_det  # noqa: F401, I001

import argparse
import json

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

RESNEXT = """
MODEL:
  RESNETS: {DEPTH: 50, NUM_GROUPS: 32, WIDTH_PER_GROUP: 4, STRIDE_IN_1X1: False}
"""

# What detectron2's Base-*.yaml say, with our names in place of build_resnet_*_backbone and Res5ROIHeads.
DETECTORS = {
    "c4": """
MODEL:
  BACKBONE: {NAME: build_resnext_backbone}
  ROI_HEADS: {NAME: ResNeXtC4ROIHeads}
  ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}
""",
    "fpn": """
MODEL:
  BACKBONE: {NAME: build_resnext_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], PRE_NMS_TOPK_TRAIN: 2000, PRE_NMS_TOPK_TEST: 1000, POST_NMS_TOPK_TRAIN: 1000}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, POOLER_RESOLUTION: 7}
""",
    "retinanet": """
MODEL:
  META_ARCHITECTURE: RetinaNet
  BACKBONE: {NAME: build_retinanet_resnext_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res3, res4, res5]}
  FPN: {IN_FEATURES: [res3, res4, res5]}
  ANCHOR_GENERATOR: {SIZES: [[32, 40, 51], [64, 81, 102], [128, 161, 203], [256, 323, 406], [512, 645, 813]]}
  RETINANET: {IOU_THRESHOLDS: [0.4, 0.5], IOU_LABELS: [0, -1, 1], SMOOTH_L1_LOSS_BETA: 0.0}
""",
    "mask": """
MODEL:
  MASK_ON: True
  BACKBONE: {NAME: build_resnext_backbone}
  ROI_HEADS: {NAME: ResNeXtC4ROIHeads}
  ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 0}
""",
}

SMALL = """
MODEL:
  RESNETS: {DEPTH: 26, NUM_GROUPS: 8, WIDTH_PER_GROUP: 4, STEM_OUT_CHANNELS: 16, RES2_OUT_CHANNELS: 32, NORM: BN}
  BACKBONE: {FREEZE_AT: 0}
  RPN: {PRE_NMS_TOPK_TRAIN: 200, POST_NMS_TOPK_TRAIN: 50, PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 20}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 32, SCORE_THRESH_TEST: 0.0}
  RETINANET: {SCORE_THRESH_TEST: 0.0, TOPK_CANDIDATES_TEST: 100}
INPUT: {MIN_SIZE_TRAIN: [160], MAX_SIZE_TRAIN: 256, MIN_SIZE_TEST: 160, MAX_SIZE_TEST: 256}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.001, WARMUP_ITERS: 0, STEPS: []}
DATALOADER: {NUM_WORKERS: 0}
"""


def make_config(detector, iterations, output, overrides=()):
    cfg = get_cfg()
    for text in (RESNEXT, DETECTORS[detector], SMALL):
        cfg.merge_from_other_cfg(cfg.load_cfg(text))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("own_train",), ("own_test",)
    cfg.SOLVER.MAX_ITER, cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = iterations, output, ""
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    cfg.merge_from_list(list(overrides))
    DatasetCatalog.get("own_train")  # reads the file, and then knows the classes
    number = len(MetadataCatalog.get("own_train").thing_classes)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = number
    cfg.freeze()
    return cfg


def train(cfg, model):
    """detectron2's plain loop."""
    model.train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    DetectionCheckpointer(model, cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
    losses = []
    with EventStorage(0) as storage:
        for data, iteration in zip(build_detection_train_loader(cfg), range(cfg.SOLVER.MAX_ITER), strict=False):
            storage.iter = iteration
            loss = sum(model(data).values())
            assert torch.isfinite(loss), f"iteration {iteration}: the loss is {loss}"
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return losses


def evaluate(cfg, model):
    evaluator = COCOEvaluator("own_test", output_dir=cfg.OUTPUT_DIR)
    return inference_on_dataset(model, build_detection_test_loader(cfg, "own_test"), evaluator)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs=2, required=True, metavar=("JSON", "FOLDER"))
    parser.add_argument("--test", nargs=2, required=True, metavar=("JSON", "FOLDER"))
    parser.add_argument("--detector", choices=[*DETECTORS, "all"], default="all")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--output", default="output")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    setup_logger()
    register_coco_instances("own_train", {}, *args.train)
    register_coco_instances("own_test", {}, *args.test)
    for detector in DETECTORS if args.detector == "all" else [args.detector]:
        torch.manual_seed(0)
        cfg = make_config(detector, args.iterations, f"{args.output}/{detector}", args.opts)
        model = build_model(cfg)
        result = {"detector": detector, "losses": train(cfg, model), **evaluate(cfg, model)}
        print(json.dumps(result))


if __name__ == "__main__":
    main()
