"""MODEL.WEIGHTS of pretraining through the tool: what fits is reported, what contradicts is one line and code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnext_det import create_model
from resnext_det.classification.config import get_config
from resnext_det.classification.initial_weights import metadata
from resnext_det.commands.pretrain import main
from resnext_det.engine import exits as cli
from resnext_det.weights import save_checkpoint

CHANNELS = {"stem_out_channels": 8, "res2_out_channels": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two images of each of two colors, to train on and to test, and a network of a few thousand weights."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for name, color in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(np.full((20, 24, 3), color, np.uint8)).save(root / split / name / f"{i}.png")
    (root / "config.yaml").write_text(f"""
MODEL: {{NAME: resnext14_2x2d, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, DEVICE: cpu}}
DATASETS: {{TRAIN: {root}/train, TEST: {root}/val}}
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{CROP_SIZE: 16}}
TEST: {{SHORT_SIDE: 16, CROP_SIZE: 16}}
SOLVER: {{EPOCHS: 1, STEPS: [], IMS_PER_BATCH: 4, REFERENCE_BATCH: 4, BASE_LR: 0.01}}
""")
    return root


def facts(**changed) -> dict:
    """The metadata of a run with the fixture's config, some of it changed."""
    cfg = get_config()
    cfg.MODEL.NAME, cfg.INPUT.CROP_SIZE = "resnext14_2x2d", 16
    cfg.MODEL.STEM_OUT_CHANNELS, cfg.MODEL.RES2_OUT_CHANNELS = 8, 16
    return metadata(cfg, create_model("resnext14_2x2d", 2, **CHANNELS), ["blue", "red"]) | changed


def saved(folder: Path, tensors: dict, known: dict) -> str:
    save_checkpoint(folder / "weights.pth", tensors, known)
    return str(folder / "weights.pth")


def call(folder: Path, output: Path, *arguments: str) -> None:
    main(["--config-file", str(folder / "config.yaml"), *arguments, "OUTPUT_DIR", str(output)])


def line(run: Callable[[], None], capsys: pytest.CaptureFixture) -> str:
    """The last line on stderr of a command that leaves with code 2."""
    with pytest.raises(SystemExit) as left:
        cli.run(run)
    assert left.value.code == cli.EXIT_USER_ERROR
    return capsys.readouterr().err.rstrip("\n").rsplit("\n", 1)[-1]


def test_a_run_says_what_it_loaded_and_carries_every_fact(folder: Path, tmp_path: Path) -> None:
    state = create_model("resnext14_2x2d", 5, **CHANNELS).state_dict()
    call(folder, tmp_path / "run", "--init-from", saved(tmp_path, state, {}))
    assert "weights.pth (model): backbone 85/85, new: fc 2" in (tmp_path / "run" / "log.txt").read_text()
    for name in ("model_final", "model_best"):
        known = torch.load(tmp_path / "run" / f"{name}.pth", weights_only=True)["metadata"]
        assert facts().items() <= known.items()
    assert known["top1_error"] == json.loads((tmp_path / "run" / "results.json").read_text())["top1_error"]
    call(folder, tmp_path / "run", "--resume", "SOLVER.EPOCHS", "2")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "resumed from" in log and "model_final.pth: backbone 85/85, fc 2/2; trainer" in log


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pixel_mean": [127.5, 127.5, 127.5]}, "contradict INPUT.MEAN [0.485,0.456,0.406] of the config; "
         "set INPUT.MEAN [0.5,0.5,0.5], or take other weights"),
        ({"pixel_std": [51.0, 51.0, 51.0]}, "contradict INPUT.STD [0.229,0.224,0.225] of the config; "
         "set INPUT.STD [0.2,0.2,0.2], or take other weights"),
        ({"stride_in_1x1": True}, "contradict MODEL.STRIDE_IN_1X1 False of the config; "
         "set MODEL.STRIDE_IN_1X1 True, or take other weights"),
        ({"norm_eps": 1e-3}, "contradict norm_eps 1e-05 of the config; no key changes norm_eps: take other weights"),
        ({"channel_order": "BGR"}, "contradict channel_order RGB of the config; "
         "no key changes channel_order: take other weights"),
    ],
)  # fmt: skip
def test_contradictions(changed: dict, says: str, folder: Path, tmp_path: Path, capsys) -> None:
    path = saved(tmp_path, create_model("resnext14_2x2d", 2, **CHANNELS).state_dict(), facts(**changed))
    for flags in (["--init-from", path], ["--eval-only", "MODEL.WEIGHTS", path]):
        said = line(lambda flags=flags: call(folder, tmp_path / "run", *flags), capsys)
        assert said == f"error: {path} (model): its weights {says}"


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("resnet14", {}, "MODEL.NAME resnext14_2x2d of the config; set MODEL.NAME resnet14"),
        ("resnext14_2x2d", {"form": "a"}, "MODEL.FORM c of the config; set MODEL.FORM a"),
        ("resnext14_2x2d", {"residual": False}, "MODEL.RESIDUAL True of the config; set MODEL.RESIDUAL False"),
        ("resnext14_2x2d", {"stem_out_channels": 4}, "MODEL.STEM_OUT_CHANNELS 8 of the config; "
         "set MODEL.STEM_OUT_CHANNELS 4"),
    ],
)  # fmt: skip
def test_another_network(name: str, how: dict, says: str, folder: Path, tmp_path: Path, capsys) -> None:
    path = saved(tmp_path, create_model(name, 2, **CHANNELS | how).state_dict(), {})
    said = line(lambda: call(folder, tmp_path / "run", "--init-from", path), capsys)
    assert said == f"error: {path} (model): its weights contradict {says}, or take other weights"


def test_resuming_with_other_statistics_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    call(folder, tmp_path / "run")
    resume = ["--resume", "INPUT.STD", "(0.5, 0.5, 0.5)"]
    said = line(lambda: call(folder, tmp_path / "run", *resume), capsys)
    assert said.endswith("set INPUT.STD [0.229,0.224,0.225], or take other weights")


def test_an_allowed_part_may_be_missing(folder: Path, tmp_path: Path, capsys) -> None:
    state = create_model("resnext14_2x2d", 2, **CHANNELS).state_dict()
    path = saved(tmp_path, {k: v for k, v in state.items() if not k.startswith(("fc.", "res5."))}, {})
    said = line(lambda: call(folder, tmp_path / "run", "--init-from", path), capsys)
    assert said.endswith("or do without: MODEL.ALLOW_MISSING \"['backbone', 'fc']\"")
    call(folder, tmp_path / "run", "--init-from", path, "MODEL.ALLOW_MISSING", "('fc', 'res5')")
    assert "backbone 65/85, new: backbone 20 fc 2" in (tmp_path / "run" / "log.txt").read_text()


def test_evaluation_wants_the_classes_of_the_weights(folder: Path, tmp_path: Path, capsys) -> None:
    path = saved(tmp_path, create_model("resnext14_2x2d", 5, **CHANNELS).state_dict(), {})
    said = line(lambda: call(folder, tmp_path / "run", "--eval-only", "MODEL.WEIGHTS", path), capsys)
    assert said == (
        f"error: {path} (model): has 5 classes and not the 2 of this evaluation; "
        "set DATASETS.TRAIN to the classes it was trained on"
    )


def test_pickles_that_run_code_need_the_flag(folder: Path, tmp_path: Path, capsys) -> None:
    torch.save(create_model("resnext14_2x2d", 2, **CHANNELS), tmp_path / "whole.pth")
    flags = ["--eval-only", "MODEL.WEIGHTS", str(tmp_path / "whole.pth")]
    assert line(lambda: call(folder, tmp_path / "run", *flags), capsys).endswith("add --trust-pickle")
    call(folder, tmp_path / "run", "--trust-pickle", *flags)
    assert "top1_error" in json.loads((tmp_path / "run" / "results.json").read_text())


def test_published_weights_are_evaluated(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """From a cache filled beforehand; their classes are ImageNet's, from the sorted folders of DATASETS.TRAIN."""
    import safetensors.torch

    pytest.importorskip("timm")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    state = create_model("resnext50_32x4d", 2).state_dict()
    from resnext_det.weights.naming import from_native

    safetensors.torch.save_file(from_native(state, "timm", "test"), cache / "resnext50_32x4d.a1_in1k.safetensors")
    weights = ["MODEL.WEIGHTS", "timm://resnext50_32x4d.a1_in1k", "MODEL.NAME", "resnext50_32x4d"]
    channels = ["MODEL.STEM_OUT_CHANNELS", "64", "MODEL.RES2_OUT_CHANNELS", "256"]
    call(folder, tmp_path / "run", "--eval-only", *weights, *channels)
    assert "backbone 265/265, fc 2/2" in (tmp_path / "run" / "log.txt").read_text()


def test_classes_go_by_their_names(folder: Path, tmp_path: Path, capsys) -> None:
    """A folder of other classes: a run is not resumed on it, and another starts from what the classes share."""
    call(folder, tmp_path / "run")
    weights = tmp_path / "run" / "model_final.pth"
    for split in ("train", "val"):
        shutil.copytree(folder / split, tmp_path / split)
        (tmp_path / split / "blue").rename(tmp_path / split / "green")
    data = ["DATASETS.TRAIN", str(tmp_path / "train"), "DATASETS.TEST", str(tmp_path / "val"), "SOLVER.EPOCHS", "2"]
    said = line(lambda: call(folder, tmp_path / "run", "--resume", *data), capsys)
    assert "has 'green' and lacks 'blue'" in said
    call(folder, tmp_path / "fine", "--init-from", str(weights), *data, "SOLVER.BASE_LR", "0.0")
    assert "classes by name: kept red; new green; left out blue" in (tmp_path / "fine" / "log.txt").read_text()
    before, after = (torch.load(run / "model_final.pth", weights_only=True)["model"]["fc.weight"]
                     for run in (tmp_path / "run", tmp_path / "fine"))  # fmt: skip
    assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])  # green stands first
