"""The examples run: outside the clone, in an empty folder, on real data."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from common import ROOT, few, shared_data
from forked import call

from resnext_det.makers.synthetic import draw_detection_set


def example(name: str, folder: Path, *arguments: object) -> CompletedProcess:
    done = call(ROOT / "examples" / name, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_backbone_in_another_project(tmp_path: Path) -> None:
    """C4, FPN, RetinaNet and Mask R-CNN on COCO's images, by detectron2's own loop and evaluator."""
    data = shared_data("coco_mini")
    train = few(data / "annotations/instances_train2017.json", tmp_path / "train.json", 12)
    test = few(data / "annotations/instances_val2017.json", tmp_path / "test.json", 4)
    sets = ["--train", train, data / "train2017", "--test", test, data / "val2017"]
    done = example("backbone_in_another_project.py", tmp_path, *sets)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["detector"] for result in results] == ["c4", "fpn", "retinanet", "mask"]
    for result in results:
        assert len(result["losses"]) == 2 and all(math.isfinite(loss) for loss in result["losses"])
        assert 0 <= result["bbox"]["AP"] <= 100  # NaN where nothing was detected
    assert 0 <= results[-1]["segm"]["AP"] <= 100


def bccd(folder: Path) -> list[str | Path]:
    """Blood cells: the arguments of a small training and test set."""
    data = shared_data("bccd")
    sets: list[str | Path] = []
    for part, count, flag in (("train", 8, "--train"), ("val", 3, "--test")):
        (annotations,) = (data / "annotations").glob(f"*{part}.json")
        sets += [flag, few(annotations, folder / f"{part}.json", count), data / part]
    return sets


@pytest.mark.slow
def test_own_coco_data(tmp_path: Path) -> None:
    example("own_coco_data.py", tmp_path, *bccd(tmp_path), "--iterations", "2")
    output = tmp_path / "output/own_coco_data"
    assert "AP50" in json.loads((output / "results.json").read_text("utf-8"))["bbox"]
    assert len(list((output / "drawn").glob("*.jp*g"))) == 3 and (output / "drawn/detections.json").is_file()


@pytest.mark.slow
def test_pretrain_then_finetune(tmp_path: Path) -> None:
    sets = bccd(tmp_path)
    for part in ("train", "val"):
        paths = sorted(Path(sets[2]).iterdir())
        for label, some in (("one", paths[:4]), ("two", paths[4:8])):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for path in some:
                shutil.copy(path, folder)
    done = example("pretrain_then_finetune.py", tmp_path, "--images", "images", *sets, "--classes", "3")
    output = tmp_path / "output/pretrain_then_finetune"
    assert "top1_error" in json.loads((output / "classifier/results.json").read_text("utf-8"))
    assert "AP50" in json.loads((output / "detector/results.json").read_text("utf-8"))["bbox"]
    log = done.stdout + done.stderr
    assert "backbone 110/110, res5 35/35, new: " in log, [line for line in log.splitlines() if "backbone" in line]


@pytest.mark.slow
def test_plain_train(tmp_path: Path) -> None:
    """On drawn shapes: a page that uses no engine trains, and its detections are evaluated."""
    json_file, images = draw_detection_set(tmp_path, 2)
    sets = ["--train", json_file, images, "--test", json_file, images]
    small = ["--network", 14, 2, 4, "--iterations", 3, "--size", 64, "--batch", 1]
    done = example("plain_train.py", tmp_path, *sets, *small)
    losses = [float(total) for total in re.findall(r"^iteration \d+: (\S+)", done.stdout, re.M)]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    numbers = json.loads(done.stdout.splitlines()[-1])
    assert numbers.keys() == {"AP", "AP50"} and isinstance(json.loads((tmp_path / "detections.json").read_text()), list)
