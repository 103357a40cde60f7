"""Pretraining end to end on made pictures: results, resuming to equal bits, several processes, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """12 noisy pictures of each of two colours to train on, 4 to test."""
    root = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, colour in (("blue", (60, 60, 200)), ("red", (200, 60, 60))):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(noise.normal(colour, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    (root / "config.yaml").write_text(f"""
MODEL: {{NAME: resnext14_2x2d, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, DEVICE: cpu}}
DATASETS: {{TRAIN: {root}/train, TEST: {root}/val}}
DATALOADER: {{NUM_WORKERS: 0}}
INPUT: {{CROP_SIZE: 16}}
TEST: {{SHORT_SIDE: 16, CROP_SIZE: 16}}
SOLVER: {{EPOCHS: 4, STEPS: [3], IMS_PER_BATCH: 8, REFERENCE_BATCH: 8, BASE_LR: 0.01, EMA_DECAY: 0.5}}
""")
    return root


def pretrain(folder: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "tools/pretrain.py", "--config-file", str(folder / "config.yaml"), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_resumed_equals_uninterrupted_and_evaluates_alike(folder: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pretrain(folder, "OUTPUT_DIR", str(whole))
    pretrain(folder, "OUTPUT_DIR", str(broken))
    for file in [*broken.glob("model_final.pth"), *broken.glob("model_best.pth"), broken / "last_checkpoint"]:
        file.unlink()
    newest = max(broken.glob("model_0*.pth"))
    if len(list(broken.glob("model_0*.pth"))) > 1:
        newest.unlink()
    pretrain(folder, "--resume", "OUTPUT_DIR", str(broken))
    ours, theirs = (torch.load(run / "model_final.pth", weights_only=True) for run in (broken, whole))
    for part in ("model", "model_ema"):
        assert all(torch.equal(ours[part][key], theirs[part][key]) for key in theirs[part]), part
    results = json.loads((whole / "results.json").read_text())
    assert results["top1_error"] <= 50 and results["top5_error"] == 0
    facts = theirs["metadata"]
    assert (facts["channel_order"], facts["class_names"], facts["depth"]) == ("RGB", ["blue", "red"], 14)
    pretrain(folder, "--eval-only", "MODEL.WEIGHTS", str(whole / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "e"))
    assert json.loads((tmp_path / "e" / "results.json").read_text()) == results


def test_two_processes_equal_one(folder: Path, tmp_path: Path) -> None:
    """Whole-batch statistics: the same weights up to fp32 rounding after the first epoch."""
    common = ["SOLVER.EPOCHS", "1", "SOLVER.STEPS", "()", "MODEL.NORM", "SyncBN"]
    pretrain(folder, *common, "OUTPUT_DIR", str(tmp_path / "one"))
    pretrain(folder, "--num-gpus", "2", *common, "OUTPUT_DIR", str(tmp_path / "two"))
    one, two = (torch.load(tmp_path / run / "model_final.pth", weights_only=True)["model"] for run in ("one", "two"))
    for key in one:
        if key.endswith(("weight", "bias")):
            torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eval-only"], "MODEL.WEIGHTS"),
        (["SOLVER.STEPS", "(5,)"], "SOLVER.STEPS"),
        (["SOLVER.ACCUMULATE", "3"], "not divisible"),
        (["DATASETS.TRAIN", "nowhere"], "no such folder"),
        (["DATASETS.TRAIN", "tests/classification"], "no class folders"),
        (["SOLVER.SCHEDUL", "step"], "did you mean SOLVER.SCHEDULE"),
    ],
)
def test_mistakes_are_one_line_and_code_2(folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    message = pretrain(folder, *arguments, "OUTPUT_DIR", str(tmp_path), code=2)
    assert words in message and "Traceback" not in message
