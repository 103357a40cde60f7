"""The transfer command: what is missing is run, once; the table says what ran and what did not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from common import ROOT

from resnext_det import cli
from resnext_det.detection.config import setup
from resnext_det.errors import UserError
from resnext_det.paper import transfer
from resnext_det.paper.reproduce import Command, options_of_file
from resnext_det.paper.transfer import (
    Settings,
    command_of,
    labels_of,
    measured,
    paired_difference,
    table_text,
    write_png,
)


def finish(command: Command, ap: float) -> None:
    boxes = {"AP50": ap + 20, "AP": ap, "AP75": ap + 5}
    write(command, {"bbox": boxes, "segm": {key: value - 10 for key, value in boxes.items()}})


def write(command: Command, results: dict) -> None:
    command.folder.mkdir(parents=True, exist_ok=True)
    command.made[0].touch()
    command.made[1].write_text(json.dumps(results))
    os.utime(command.made[0], (1, 1))


def test_only_what_is_missing_runs_and_an_interrupted_command_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    ran = []

    def run(command: Command) -> None:
        ran.append(command.folder.relative_to("output/transfer/voc0712/R_50").as_posix())
        if len(ran) == 3:
            raise UserError("killed")
        trial = int(command.folder.name[-1])
        finish(command, 50 + trial + (2 if command.folder.parent.name == "b" else 0))

    monkeypatch.setattr(Command, "run", run)
    line = ["--protocol", "voc0712", "--weights", "x/a.pth", "x/b.pth", "--trials", "3"]
    with pytest.raises(UserError, match="killed"):
        cli.call("transfer", line)
    cli.call("transfer", line)
    assert ran == ["a/trial0", "b/trial0", "a/trial1", "a/trial1", "b/trial1", "a/trial2", "b/trial2"]
    text = capsys.readouterr().out
    assert "| a " in text and "51.00 ± 1.00" in text and "53.00 ± 1.00" in text
    assert "AP, b - a: +2.00, 95% interval +2.00 to +2.00 (3 pairs)" in text
    assert "published: MoCo v2, 800 epochs" in text and "facebookresearch/moco" in text
    lines = Path("output/transfer/voc0712_R_50.csv").read_text().splitlines()
    assert lines[0] == "weights,trial,AP50,AP,AP75" and lines[1] == "a,0,70.0,50.0,55.0" and len(lines) == 7
    assert Path("output/transfer/voc0712_R_50.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_ran_says_so_and_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    cli.call("transfer", ["--protocol", "coco_2x", "--weights", "a.pth", "b.pth", "--trials", "2", "--dry-run"])
    text = capsys.readouterr().out
    assert text.count("--config-file") == 4 and text.count("not run") == 18 and not list(tmp_path.iterdir())


def test_the_batch_follows_the_processes_and_every_protocol_has_its_config() -> None:
    for protocol in transfer.PROTOCOLS:
        for network in transfer.NETWORKS:
            command = command_of("a", "a.pth", 3, Settings(Path("o"), protocol, network, processes=4))
            assert command.config.is_file()
            keys = dict(zip(command.options[::2], command.options[1::2], strict=True))
            assert (keys["SEED"], keys["SOLVER.IMS_PER_BATCH"]) == ("3", "8")


def test_paired_difference_is_students() -> None:
    n, mean, half = paired_difference({0: 1.0, 1: 2.0, 2: 3.0, 3: 9.0}, {0: 2.0, 1: 4.0, 2: 6.0})
    assert (n, mean) == (3, 2.0) and half == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert transfer._student(11) == pytest.approx(2.2010, abs=1e-3)
    assert transfer._student(30) == pytest.approx(2.0423, abs=1e-3)


def test_names_of_files_become_lines() -> None:
    assert labels_of(["x/m.pth", "y/m.pth", "n.pth.tar"]) == {"x_m": "x/m.pth", "y_m": "y/m.pth", "n": "n.pth.tar"}
    with pytest.raises(UserError, match="given twice"):
        labels_of(["a.pth", "a.pth"])


def test_none_is_a_random_backbone() -> None:
    options = command_of("none", "none", 0, Settings(Path("o"))).options
    assert options[:2] == ("MODEL.WEIGHTS", "")


def test_a_changed_protocol_is_labeled() -> None:
    text = table_text({"a": {}}, 2, Settings(Path("o"), options=("SOLVER.MAX_ITER", "9")))
    assert "1 settings are not the protocol's" in text and "not run" in text and "published" in text
    text = table_text({"a": {}}, 2, Settings(Path("o"), options=("DATASETS.TEST", "('mine',)")))
    assert "published" not in text.lower(), "other data"


def test_protocols_with_masks_have_their_columns(tmp_path: Path) -> None:
    settings = Settings(tmp_path, "coco_1x")
    finish(command_of("a", "a.pth", 0, settings), 40)
    found = measured(["a.pth"], 1, settings)
    assert found["a"][0]["mask AP"] == 30 and "mask AP75" in table_text(found, 1, settings)
    assert "mask AP" not in table_text({"a": {}}, 1, Settings(tmp_path))
    write_png(tmp_path / "masks.png", found, settings, {})
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")


def test_frozen_features_are_columns_and_run_once_for_each_backbone(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "val"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "c.yaml").write_text("SOLVER: {EPOCHS: 3}")
    ran = []

    def run(command: Command) -> None:
        ran.append((command.tool, command.folder.relative_to("output/transfer").as_posix(), command.options))
        if command.tool == "pretrain":
            better = 10 * (command.folder.name == "b")
            write(command, {"top1_error": 60.0 - better, "knn_top1_error": 70.0 - better})
        else:
            finish(command, 50)

    monkeypatch.setattr(Command, "run", run)
    line = ["--protocol", "voc0712", "--weights", "none", "x/b.pth", "--trials", "2", "--classification", "data"]
    cli.call("transfer", [*line, "--classification-settings", "c.yaml"])
    assert [name for tool, name, _ in ran if tool == "pretrain"] == ["linear/R_50/none", "linear/R_50/b"]
    keys = [dict(zip(options[::2], options[1::2], strict=True)) for tool, _, options in ran if tool == "pretrain"]
    assert [k["MODEL.WEIGHTS"] for k in keys] == ["", "x/b.pth"] and keys[0]["SOLVER.EPOCHS"] == "3"
    text = capsys.readouterr().out
    assert "| none " in text and "| 40.00" in text and "| 50.00" in text and "accuracy on data" in text
    (head, first, _, third, _) = Path("output/transfer/voc0712_R_50.csv").read_text().splitlines()
    assert head.endswith("AP75,linear,k-NN") and first.endswith(",40.0,30.0") and third.endswith(",50.0,40.0")


def test_every_backbone_is_compared_with_the_first() -> None:
    aps = {"a": 1, "b": 3, "c": 9}
    runs = {name: {t: dict.fromkeys(("AP50", "AP", "AP75"), ap + t) for t in (0, 1)} for name, ap in aps.items()}
    text = table_text(runs, 2, Settings(Path("o")))
    assert "AP, b - a: +2.00" in text and "AP, c - a: +8.00" in text and "c - b" not in text


def test_the_small_settings_are_of_the_protocol() -> None:
    options = options_of_file(str(ROOT / "configs/reproduce/bccd_voc.yaml"))
    command = command_of("none", "none", 0, Settings(Path("o"), batch=4, options=tuple(options)))
    cfg = setup(str(command.config), [*command.options, "MODEL.DEVICE", "cpu"])
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.RESNETS.DEPTH) == (3, 4, 14)
    assert cfg.MODEL.RESNEXT.RES5_EXTRA_NORM and cfg.TEST.PRECISE_BN.ENABLED


def test_settings_hold_keys_of_a_config(tmp_path: Path) -> None:
    for key in ('"a\\nb"', "1", '"-x"', '"SEED 1"'):
        (tmp_path / "s.yaml").write_text(f"SOLVER: {{BASE_LR: 0.1, {key}: 2}}")
        with pytest.raises(UserError, match="is no key of a config"):
            options_of_file(str(tmp_path / "s.yaml"))
