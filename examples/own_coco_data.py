"""Train a detector on your own COCO-format data, from the check of the data to drawn detections.

    python own_coco_data.py --train train.json train/ --test val.json val/

The same by hand: `resnext-det check`, a YAML file, `resnext-det train`, `resnext-det predict`. Random weights and a
small network here, so that it ends within a minute; for real use take detection/coco/X_50_32x4d_C4_1x.yaml as the base,
keep its network and its pretrained weights, and train for longer.
"""

import argparse
import json
from pathlib import Path

import yaml

import resnext_det
from resnext_det.annotations import check as dataset_check
from resnext_det.commands import predict, train


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs=2, required=True, metavar=("JSON", "FOLDER"))
    parser.add_argument("--test", nargs=2, required=True, metavar=("JSON", "FOLDER"))
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--output", default="output/own_coco_data")
    args = parser.parse_args()

    # 1. Mistakes in the data are named before anything is trained on them.
    for json_file, folder in (args.train, args.test):
        checked = dataset_check.inspect_coco(json_file, folder)
        print(dataset_check.report(checked))
        if checked.errors:
            checked.raise_errors()
    classes = len(json.loads(Path(args.train[0]).read_text(encoding="utf-8"))["categories"])

    # 2. One YAML file registers the data and describes the run.
    config = {
        "_BASE_": resnext_det.config_path("detection/Base-RCNN-C4.yaml"),
        "OUTPUT_DIR": args.output,
        "DATASETS": {
            "REGISTER": [["own_train", *args.train], ["own_test", *args.test]],
            "TRAIN": ["own_train"],
            "TEST": ["own_test"],
        },
        "MODEL": {
            "ROI_HEADS": {"NUM_CLASSES": classes},
            # small, and from random weights: nothing is frozen
            "BACKBONE": {"FREEZE_AT": 0},
            "RESNETS": {"DEPTH": 26, "NUM_GROUPS": 8, "WIDTH_PER_GROUP": 4, "RES2_OUT_CHANNELS": 64, "NORM": "BN"},
            "RPN": {"POST_NMS_TOPK_TRAIN": 100, "POST_NMS_TOPK_TEST": 50},
        },
        "INPUT": {"MIN_SIZE_TRAIN": [160], "MIN_SIZE_TEST": 160},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {"IMS_PER_BATCH": 2, "BASE_LR": 0.002, "MAX_ITER": args.iterations, "STEPS": [], "WARMUP_ITERS": 0},
    }
    file = Path(args.output) / "run.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config), encoding="utf-8")

    # 3. Train, evaluate, and look at what it finds.
    train.main(["--config-file", str(file)])
    print((Path(args.output) / "results.json").read_text(encoding="utf-8"))
    weights = str(Path(args.output) / "model_final.pth")
    drawn = ["--output", str(Path(args.output) / "drawn"), "--score-threshold", "0.1"]
    inputs = ["--input", *map(str, sorted(Path(args.test[1]).iterdir())[:3])]
    predict.main(["--config-file", str(file), *drawn, *inputs, "MODEL.WEIGHTS", weights])


if __name__ == "__main__":
    main()
