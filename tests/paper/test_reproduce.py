"""Tables of the paper: every line has its configuration, what is missing runs, what is finished does not run again."""

from __future__ import annotations

import json
import math
import os
from fractions import Fraction
from pathlib import Path

import pytest

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det import UserError
from resnext_det.commands.reproduce import main
from resnext_det.paper import reproduce
from resnext_det.paper.reproduce import Settings, plan
from resnext_det.paper.tables import TABLES
from resnext_det.variants import block_parameters


@pytest.fixture
def coco_folder(tmp_path):
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    image = {"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}
    content = {"images": [image], "annotations": [], "categories": categories}
    for name in ("train2017", "val2017"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "set" / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    (tmp_path / "set" / "annotations" / "instances_train_copy.json").write_text("{}")
    return tmp_path / "set"


class Runs:
    """Stands in for the tools: writes what each would have made."""

    def __init__(self, monkeypatch, ap: float = 10.0) -> None:
        self.lines: list[list[str]] = []
        self.ap, self.code = ap, 0
        monkeypatch.setattr(reproduce, "run_command", self)

    def __call__(self, line):
        self.lines.append(line)
        options = line[line.index("--config-file") + 2 :]
        folder = Path(options[options.index("OUTPUT_DIR") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        tool = line[3]
        if tool == "proposals":
            (folder / "proposals").mkdir(exist_ok=True)
            for name in ("reproduce_train2017", "reproduce_val2017"):
                (folder / "proposals" / f"{name}.pkl").touch()
        elif self.code == 0:
            if "--eval-only" not in line:
                (folder / "model_final.pth").touch()
            self.ap += 1
            numbers = {"AP": self.ap, "AP50": None}
            results = {"bbox": numbers} if tool == "train" else {"top1_error": self.ap, "top5_error": 5.0}
            (folder / "results.json").write_text(json.dumps(results))
        return self.code

    def tools(self) -> list[str]:
        return [line[3] for line in self.lines]


def options_of(command) -> dict:
    return dict(zip(command.options[::2], command.options[1::2], strict=True))


@pytest.mark.parametrize("number", TABLES)
def test_every_line_has_its_configuration(number, tmp_path):
    for name in TABLES[number].rows:
        for command in plan(number, name, 0, Settings(tmp_path)):
            assert command.config.is_file()
    for name in TABLES[8].rows:
        plan(8, name, 0, Settings(tmp_path, protocol="joint"))


def test_cifar_100_has_its_own_statistics_and_folder(tmp_path):
    (small,), (large,) = (plan(7, f"8x64d-cifar{classes}", 0, Settings(tmp_path)) for classes in (10, 100))
    assert large.config.name == "resnext29_8x64d_cifar100.yaml" and small.folder != large.folder


def test_means_of_as_many_runs_as_the_papers(tmp_path, capsys):
    main(["--table", "7", "--rows", "8x64d-cifar10", "--output", str(tmp_path), "--dry-run"])
    out = capsys.readouterr().out
    assert [f"SEED {seed} " in out for seed in range(11)] == [True] * 10 + [False]
    assert "| Wide ResNet, CIFAR-100 |" in out.replace("  ", "") and "quoted" in out
    main(["--table", "3", "--rows", "resnet50", "--output", str(tmp_path), "--dry-run"])
    assert "SEED 1 " not in capsys.readouterr().out


def test_the_residual_table(tmp_path, capsys):
    main(["--table", "residual", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert "31.2" in out and "26.1" in out and out.count("not run") == 8


def test_nothing_was_run(capsys, tmp_path):
    main(["--table", "8", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.count("not run") == 8 and "49.7" in out and "miniature" not in out


def test_the_two_steps_of_table_8_run_in_order_and_once(coco_folder, tmp_path, monkeypatch, capsys):
    runs = Runs(monkeypatch)
    command = ["--table", "8", "--rows", "R50", "--data", str(coco_folder), "--output", str(tmp_path / "out")]
    main([*command, "--dry-run"])
    assert not runs.lines and capsys.readouterr().out.count("OUTPUT_DIR") == 3
    main([*command, "--run"])
    assert runs.tools() == ["train", "proposals", "train"]
    fast = options_of(plan(8, "R50", 0, Settings(tmp_path / "out", coco_folder))[-1])
    assert fast["DATASETS.PROPOSAL_FILES_TRAIN"] == str((f"{tmp_path}/out/table8/R50/seed0/rpn/proposals/"
                                                         "reproduce_train2017.pkl",))  # fmt: skip
    assert fast["MODEL.ROI_HEADS.NUM_CLASSES"] == "2"
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("| ResNet-50"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["–", "47.6", "12.0", "26.5"]
    assert "A miniature (data set)" in out
    main([*command, "--run"])
    assert len(runs.lines) == 3, "finished"
    with pytest.raises(UserError, match="was run with other options"):
        main([*command, "--run", "--set", "SEED", "3"])
    os.utime(tmp_path / "out/table8/R50/seed0/fast/model_final.pth", (2e9, 2e9))  # its results are of an older network
    main([*command, "--run"])
    assert runs.tools()[3:] == ["train"] and "--resume" in runs.lines[-1]


def test_seeds_are_averaged_and_listed(coco_folder, tmp_path, monkeypatch, capsys):
    Runs(monkeypatch, ap=10.0)
    command = ["--table", "8", "--protocol", "joint", "--rows", "R50", "X50", "--seeds", "0", "1", "2", "--run"]
    main([*command, "--data", str(coco_folder), "--output", str(tmp_path)])
    out = capsys.readouterr().out
    assert "ResNet-50 1x64d, AP: 13.0 ± 2.0; 11.0 (seed 0), 13.0 (seed 1), 15.0 (seed 2)" in out


def test_a_failed_run_is_named(coco_folder, tmp_path, monkeypatch):
    Runs(monkeypatch).code = 7
    with pytest.raises(UserError, match="rpn: train ended with code 7"):
        main(["--table", "8", "--data", str(coco_folder), "--output", str(tmp_path), "--run"])


def test_lines_of_one_network_share_a_training(tmp_path, monkeypatch, capsys):
    runs = Runs(monkeypatch, ap=20.0)
    for name in ("train", "val"):
        (tmp_path / "set" / name).mkdir(parents=True)
    command = ["--table", "5", "--rows", "resnet200-224", "resnet200-320", "--data", str(tmp_path / "set"), "--run"]
    main([*command, "--output", str(tmp_path / "out"), "--width", "1/2"])
    assert runs.tools() == ["pretrain", "pretrain"] and ["--eval-only" in line for line in runs.lines] == [False, True]
    evaluation = runs.lines[1]
    assert evaluation[evaluation.index("TEST.CROP_SIZE") + 1] == "320"
    assert evaluation[evaluation.index("MODEL.NAME") + 1] == "resnextv2_200_1x32d"
    assert Path(evaluation[evaluation.index("MODEL.WEIGHTS") + 1]).parent.name == "seed0"
    out = capsys.readouterr().out
    assert "22.00" in out and "ResNet-200, 224x224, here resnextv2_200_1x32d" in out
    main([*command[:2], "--rows", "resnet200-224", *command[-3:], "--output", str(tmp_path / "out"), "--width", "1/2"])
    four = ["--table", "4", "--rows", "resnet200", "--data", str(tmp_path / "set"), "--run", "--width", "1/2"]
    main([*four, "--output", str(tmp_path / "out")])
    assert len(runs.lines) == 2, "table 4 has the same training"


def test_narrow_networks_keep_equal_cost(tmp_path, coco_folder):
    settings = Settings(tmp_path, coco_folder, width=Fraction(1, 4), protocol="joint")
    options = [options_of(plan(8, name, 0, settings)[0]) for name in ("R50", "X50")]
    assert [o["MODEL.RESNETS.WIDTH_PER_GROUP"] for o in options] == ["16", "1"]
    assert {o["MODEL.RESNETS.RES2_OUT_CHANNELS"] for o in options} == {"64"}
    plain, grouped = block_parameters(1, 16, 64), block_parameters(32, 1, 64)
    assert math.isclose(plain, grouped, rel_tol=0.01)
    with pytest.raises(UserError, match="--width 1/8: leaves 0.5 of 4 channels"):
        plan(8, "X50", 0, Settings(tmp_path, width=Fraction(1, 8)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--table", "8", "--rows", "R5"], "--rows R5: not in table 8; did you mean R50"),
        (["--table", "3", "--data", "/nowhere", "--run"], "--data /nowhere: needs the folders train and val"),
        (["--table", "8", "--data", "/nowhere", "--run"], "annotations/instances_train"),
        (["--table", "8", "--weights", "X50", "f", "--run"], "--weights: none for R50"),
        (["--table", "8", "--settings", "/none.yaml"], "/none.yaml: no such file"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


@pytest.mark.slow
def test_a_miniature_really_runs(tmp_path, capfd):
    """Both steps of a line, in real processes, on the tiny set of the detection tests."""
    from tiny import write_paper_inputs

    settings = write_paper_inputs(tmp_path).replace("MODEL:", 'MODEL:\n  WEIGHTS: ""')
    (tmp_path / "settings.yaml").write_text(settings)
    files = ["--data", str(tmp_path / "set"), "--output", str(tmp_path / "out")]
    main(["--table", "8", "--rows", "X50", "--settings", str(tmp_path / "settings.yaml"), "--width", "1/4", *files,
          "--run"])  # fmt: skip
    out = capfd.readouterr().out
    assert "here 14 layers 32x1d" in out and "not run" not in out
