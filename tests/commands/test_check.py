"""`check --config-file`: all that a run needs of its sets, before it is started."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.modeling import build_model

from resnext_det.commands.check import main
from resnext_det.detection.initial_weights import architecture
from resnext_det.errors import UserError
from resnext_det.weights import save_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from tiny import TinyRun  # noqa: E402


@pytest.fixture
def tiny(tmp_path) -> TinyRun:
    return TinyRun(tmp_path)


def arguments(tiny: TinyRun, *more: object) -> list[str]:
    return ["--config-file", str(tiny.file), "--workers", "1", *tiny.options("run", *more)]


def test_all_sets_of_a_run_and_what_its_model_needs(tiny, capsys):
    main(arguments(tiny))
    text = capsys.readouterr().out
    assert text.count("0 errors, 0 warnings") == 2 and "MODEL.WEIGHTS" not in text
    needs = ["MODEL.MASK_ON", True, "TEST.MAX_DETECTIONS", 1, "TEST.DETECTIONS_PER_IMAGE", 1]
    with pytest.raises(UserError, match=f"{tiny.train}: 12 errors, listed above$"):
        main(arguments(tiny, *needs))
    text = capsys.readouterr().out
    assert "is missing, and the model learns masks (MODEL.MASK_ON True)" in text
    assert "more than 1 objects stand in 6 images, 2 at most, and the model gives 1 detections" in text
    with pytest.raises(UserError, match=": 1 error, listed above; .*: 1 error, listed above"):
        main(arguments(tiny, "MODEL.ROI_HEADS.NUM_CLASSES", 3))
    assert "has 2 classes, the model 3; set MODEL.ROI_HEADS.NUM_CLASSES 2" in capsys.readouterr().out
    main(arguments(tiny, "MODEL.KEYPOINT_ON", True, "DATASETS.TRAIN", "()"))  # to evaluate on: AP of boxes is there
    assert "0 errors, 6 warnings" in capsys.readouterr().out


def test_one_set_is_looked_at_as_the_training_set(tiny, capsys):
    _, file, images = tiny.sets[1]
    main(["--json", file, "--images", images, *arguments(tiny)])
    content = json.loads(Path(file).read_text())
    for record in content["annotations"]:
        record["iscrowd"] = 1
    Path(file).write_text(json.dumps(content))
    with pytest.raises(UserError, match="6 errors, listed above"):
        main(["--json", file, "--images", images, *arguments(tiny)])
    assert "is 1 in every annotation" in capsys.readouterr().out


def test_a_folder_alone_is_checked_split_by_split(tiny, tmp_path, capsys):
    folder = shutil.copytree(tiny.folder, tmp_path / "set", ignore=shutil.ignore_patterns("*.yaml", "output*"))
    with pytest.raises(UserError, match="is none of COCO"):
        main(["--json", str(folder)])
    for name in ("train", "test"):
        (folder / f"{name}.json").rename(folder / f"instances_{name}.json")
    main(["--json", str(folder)])
    text = capsys.readouterr().out
    assert "images: 6 used of 6" in text and "images: 3 used of 3" in text
    for flag in ("--fix", "--output-dir", "--shares-with"):
        with pytest.raises(UserError, match="are for one set: give --json and --images"):
            main(["--json", str(folder), flag, str(tmp_path)])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["red", "blue"], ""), (["blue", "red"], "note: .*in another order; they are matched by name"),
        (["red", "green"], "warning: .*MODEL.WEIGHTS tells 2 classes, 'red', 'green' apart, this set 2, 'red', 'blue'"),
        (["red", "blue", "green"], "warning: .*tells 3 classes, .*the heads of the boxes anew"),
    ],
)  # fmt: skip
def test_the_classes_of_the_weights(tiny, tmp_path, capsys, names, said):
    import re

    cfg = tiny.config("run", "MODEL.ROI_HEADS.NUM_CLASSES", len(names))
    facts = {**architecture(cfg), "class_names": names}
    save_checkpoint(tmp_path / "w.pth", build_model(cfg).state_dict(), facts)
    main(arguments(tiny, "MODEL.WEIGHTS", tmp_path / "w.pth"))
    text = capsys.readouterr().out
    assert re.search(said, text) and ("MODEL.WEIGHTS" in text) == bool(said), text
