"""Pretrain a small ResNeXt on images in class folders, then fine-tune a detector that starts from it.

    python pretrain_then_finetune.py --images images/ --train train.json train/ --test val.json val/

`images/` holds train/CLASS/*.jpg and val/CLASS/*.jpg. What moves from one to the other is one file; the detector's
log says which of its parts came from it and which start anew.
"""

import argparse
from pathlib import Path

from resnext_det.commands import pretrain, train

NAME, DEPTH, GROUPS, WIDTH = "resnext26_8x4d", "26", "8", "4"
CHANNELS = ["MODEL.STEM_OUT_CHANNELS", "16", "MODEL.RES2_OUT_CHANNELS", "64"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, metavar="FOLDER")
    parser.add_argument("--train", nargs=2, required=True, metavar=("JSON", "FOLDER"))
    parser.add_argument("--test", nargs=2, required=True, metavar=("JSON", "FOLDER"))
    parser.add_argument("--classes", type=int, required=True, help="of the detector")
    parser.add_argument("--output", default="output/pretrain_then_finetune")
    args = parser.parse_args()
    output = Path(args.output)

    images = ["DATASETS.TRAIN", f"{args.images}/train", "DATASETS.TEST", f"{args.images}/val"]
    schedule = ["SOLVER.EPOCHS", "1", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01"]
    small = ["INPUT.CROP_SIZE", "64", "TEST.SHORT_SIDE", "72", "TEST.CROP_SIZE", "64", "DATALOADER.NUM_WORKERS", "0"]
    pretrain.main(
        ["--config-file", "imagenet/resnext50_32x4d.yaml", "MODEL.NAME", NAME, *CHANNELS, *images, *schedule, *small]
        + ["OUTPUT_DIR", str(output / "classifier")]
    )

    network = ["DEPTH", DEPTH, "NUM_GROUPS", GROUPS, "WIDTH_PER_GROUP", WIDTH]
    network += ["STEM_OUT_CHANNELS", "16", "RES2_OUT_CHANNELS", "64", "NORM", "FrozenBN"]
    network = [part if i % 2 else f"MODEL.RESNETS.{part}" for i, part in enumerate(network)]
    register = [["own_train", *args.train], ["own_test", *args.test]]
    data = ["DATASETS.REGISTER", repr(register), "DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_test',)"]
    heads = ["MODEL.ROI_HEADS.NUM_CLASSES", str(args.classes), "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"]
    heads += ["MODEL.RPN.POST_NMS_TOPK_TEST", "50", "INPUT.MIN_SIZE_TRAIN", "(160,)", "INPUT.MIN_SIZE_TEST", "160"]
    schedule = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.002", "SOLVER.MAX_ITER", "10", "SOLVER.STEPS", "()"]
    train.main(
        ["--config-file", "detection/Base-RCNN-C4.yaml", "--init-from", str(output / "classifier/model_final.pth")]
        + [*network, *data, *heads, *schedule, "SOLVER.WARMUP_ITERS", "0", "DATALOADER.NUM_WORKERS", "0"]
        + ["OUTPUT_DIR", str(output / "detector")]
    )
    print((output / "detector/results.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
