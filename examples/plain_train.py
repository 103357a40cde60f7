"""A detector training that one can read on one page: detectron2's parts, our backbone and C4 head, no engine of ours.

    python plain_train.py --train train.json train/ --test val.json val/ --iterations 20000

What this leaves out and `resnext-det train` does: several processes, checkpoints and resuming, strict loading of
weights, a check of the data, mixed precision, reports.
"""

# Registers the backbone and the head. First, because it also lets detectron2 0.6 import beside a newer Pillow.
import resnext_det  # noqa: F401, I001

import argparse
import json

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.data.samplers import TrainingSampler
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from resnext_det.annotations.evaluation import evaluate_detections


def build(classes: int, depth: int, groups: int, width: int):
    """Faster R-CNN with all stages but the last as its trunk, and the last as its head."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_resnext_backbone", 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.RESNETS.NORM = depth, ["res4"], "BN"
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = groups, width
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "ResNeXtC4ROIHeads", classes
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 6000, 300
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return build_model(cfg)


def train(model, images, iterations: int, batch: int, rate: float, size: int):
    """Stochastic gradient descent with a warm-up of 100 steps; the rate falls tenfold at 2/3 and 8/9 of the way."""
    resize = T.ResizeShortestEdge(size, max_size=2 * size)
    mapper = DatasetMapper(is_train=True, augmentations=[resize, T.RandomFlip()], image_format="BGR")
    sampler = TrainingSampler(len(images), seed=0)
    loader = build_detection_train_loader(images, mapper=mapper, sampler=sampler, total_batch_size=batch, num_workers=0)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)

    def factor(step: int) -> float:
        return min(1, (step + 1) / 100) * 0.1 ** ((step >= iterations * 2 / 3) + (step >= iterations * 8 / 9))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for iteration, data in zip(range(iterations), loader, strict=False):
        with EventStorage(iteration):  # detectron2's heads count into it
            losses = model(data)  # {"loss_cls": ..., "loss_box_reg": ..., "loss_rpn_cls": ..., "loss_rpn_loc": ...}
        loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise SystemExit(f"iteration {iteration}: the losses are {losses}; lower --rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if iteration % 20 == 0 or iteration == iterations - 1:
            parts = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"iteration {iteration}: {loss.item():.3f} ({parts})", flush=True)


@torch.no_grad()
def predict(model, images, category_ids, size: int):
    """Detections in COCO's form; boxes are ``x, y, width, height`` in pixels of the image."""
    resize = T.ResizeShortestEdge(size, max_size=2 * size)
    mapper = DatasetMapper(is_train=False, augmentations=[resize], image_format="BGR")
    model.eval()
    records = []
    for (image,) in build_detection_test_loader(images, mapper=mapper, num_workers=0):
        found = model([image])[0]["instances"].to("cpu")
        boxes = found.pred_boxes.tensor
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        for box, score, label in zip(boxes, found.scores.tolist(), found.pred_classes.tolist(), strict=True):
            record = {"image_id": image["image_id"], "category_id": category_ids[label], "bbox": box, "score": score}
            records.append(record)
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs=2, required=True, metavar=("JSON", "FOLDER"))
    parser.add_argument("--test", nargs=2, required=True, metavar=("JSON", "FOLDER"))
    parser.add_argument("--network", nargs=3, type=int, default=(50, 32, 4), metavar=("DEPTH", "C", "D"))
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.0025)
    parser.add_argument("--size", type=int, default=640, help="of the short side, in pixels")
    parser.add_argument("--output", default="detections.json")
    args = parser.parse_args()

    torch.manual_seed(0)
    category_ids = sorted(category["id"] for category in json.load(open(args.train[0], encoding="utf-8"))["categories"])
    model = build(len(category_ids), *args.network)
    images = load_coco_json(*args.train, dataset_name="plain_train")
    train(model, images, args.iterations, args.batch, args.rate, args.size)
    records = predict(model, load_coco_json(*args.test, dataset_name="plain_test"), category_ids, args.size)
    with open(args.output, "w", encoding="utf-8") as file:
        json.dump(records, file)
    numbers = evaluate_detections(args.test[0], args.output)
    print(json.dumps({"AP": numbers["AP"], "AP50": numbers["AP50"]}))


if __name__ == "__main__":
    main()
