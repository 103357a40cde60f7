"""tools/train_net.py as a user calls it: full networks on real images, and every mistake one line and code 2."""

from __future__ import annotations

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from common import ROOT, few, shared_data
from forked import call

from resnext_det import UserError, create_model
from resnext_det.commands.train import main

X_50 = "configs/detection/coco/X_50_32x4d_C4_1x.yaml"  # relative to the root, as a user writes it


def train_net(*arguments: object, code: int = 0) -> CompletedProcess:
    done = call("tools/train_net.py", *arguments, folder=ROOT)
    assert done.returncode == code, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A ResNeXt-50 32x4d classifier whose batch norms have seen data."""
    torch.manual_seed(0)
    model = create_model("resnext50_32x4d").train()
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.mark.slow
def test_full_network_trains_and_evaluates_on_bccd(pretrained: Path, tmp_path: Path) -> None:
    data = shared_data("bccd")
    sets = [
        [
            f"bccd_{split}",
            str(few(data / f"annotations/instances_{split}.json", tmp_path / f"{split}.json", 3)),
            str(data / split),
        ]
        for split in ("train", "val")
    ]
    small = ["INPUT.MIN_SIZE_TRAIN", "(160,)", "INPUT.MIN_SIZE_TEST", 160, "MODEL.RPN.POST_NMS_TOPK_TEST", 50]
    common = [
        *("--config-file", X_50, "DATASETS.REGISTER", sets, "DATASETS.TRAIN", "('bccd_train',)"),
        *("DATASETS.TEST", "('bccd_val',)", "MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.DEVICE", "cpu", *small),
        *("DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", tmp_path / "run", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32),
    ]
    schedule = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", 1, "TEST.EVAL_PERIOD", 0]
    schedule += ["SOLVER.REFERENCE_BATCH", 0]  # else each step is one of 16 images
    log = train_net(*common, *schedule, "MODEL.WEIGHTS", pretrained).stderr
    text = (tmp_path / "run/log.txt").read_text("utf-8") + log
    assert "backbone 215/215, res5 50/50" in text and "box_predictor 4" in text
    trained = json.loads((tmp_path / "run/results.json").read_text("utf-8"))
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-RBC"} <= trained["bbox"].keys()
    assert 0 <= trained["bbox"]["AP"] <= 100

    arguments = ["MODEL.WEIGHTS", tmp_path / "run/model_final.pth", "OUTPUT_DIR", tmp_path / "again"]
    train_net("--eval-only", *common, *arguments)
    assert json.loads((tmp_path / "again/results.json").read_text("utf-8")) == trained


@pytest.mark.slow
def test_evaluates_on_real_coco_images_with_crowds(pretrained: Path, tmp_path: Path) -> None:
    """The 80-class detector on official annotations; its heads are random, and AP is a number all the same."""
    data = shared_data("coco_mini")
    json_file = next((data / "annotations").glob("*val*.json"))
    images = next(folder for folder in data.iterdir() if folder.is_dir() and "val" in folder.name)
    sets = [["mini_val", str(few(json_file, tmp_path / "val.json", 3)), str(images)]]
    train_net(
        *("--config-file", X_50, "--eval-only", "DATASETS.REGISTER", sets, "DATASETS.TEST", "('mini_val',)"),
        *("MODEL.WEIGHTS", pretrained, "MODEL.ALLOW_MISSING", "['proposal_generator','box_predictor']"),
        *("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 160, "MODEL.RPN.POST_NMS_TOPK_TEST", 30),
        *("DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", tmp_path),
    )
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))["bbox"]
    assert 0 <= results["AP"] < 20 and len([key for key in results if key.startswith("AP-")]) == 80


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config-file", "configs/detection/coco/X_50_32x4d_C4_1x.yml"), "did you mean"),
        (("--config-file", X_50, "--eval-only", "MODEL.WEIGHTS", ""), "--eval-only needs weights"),
        (("--config-file", X_50, "MODEL.RESNETS.DEPHT", "50"), "did you mean MODEL.RESNETS.DEPTH"),
        (("--config-file", X_50, "DATASETS.REGISTER", "[['a','nowhere.json','.']]"), "nowhere.json: no such file"),
        (("--config-file", X_50, "DATASETS.REGISTER", "[['a','README.md','nowhere']]"), "nowhere: no such folder"),
        (("--config-file", X_50, "DATASETS.TRAIN", "('coco_2017_trian',)"), "coco_2017_train"),
        (("--config-file", X_50), "datasets/README.md"),
        (("--config-file", X_50, "--resume", "--init-from", "x.pth"), "--init-from"),
    ],
)
def test_mistakes_name_the_key_and_the_fix(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        main([*arguments, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)])


def test_a_mistake_is_one_line_on_stderr_and_code_2(tmp_path: Path) -> None:
    done = train_net("--config-file", X_50, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path, code=2)
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr
