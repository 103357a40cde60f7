"""Damaged configurations and checkpoints: a clear error or the whole content, and no code of theirs is run."""

from __future__ import annotations

import contextlib

import pytest
import torch
from detectron2.config import get_cfg
from fuzzing import damaged, fuzz, no_hang
from hypothesis import given
from hypothesis import strategies as st
from toy import ToyRun

from resnext_det.detection.config import add_resnext_config
from resnext_det.detection.config_check import check_config
from resnext_det.engine.checkpoint import read_run_checkpoint, seal_holds
from resnext_det.engine.config import load_config
from resnext_det.errors import UserError
from resnext_det.weights import read_checkpoint

YAML = b"""SOLVER: {BASE_LR: 0.02, MAX_ITER: 100, STEPS: [60, 80], IMS_PER_BATCH: 4}
MODEL: {DEVICE: cpu, RESNETS: {DEPTH: 50, OUT_FEATURES: [res4]}, BACKBONE: {NAME: build_resnext_backbone}}
DATASETS: {REGISTER: [[a, b.json, c]], TRAIN: [a], TEST: [a], BROKEN_IMAGES: skip}
SEED: 1
"""
STOCK = get_cfg()
add_resnext_config(STOCK)


def load(path, opts=()) -> None:
    with no_hang(), contextlib.suppress(UserError):
        cfg = STOCK.clone()
        load_config(cfg, str(path), opts)
        check_config(cfg, eval_only=False)


@fuzz
@given(text=damaged(YAML))
def test_damaged_yaml(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text)
    load(path)


keys = st.sampled_from(
    ["SOLVER.STEPS", "SOLVER.MAX_ITER", "SOLVER.BASE_LR", "MODEL.RESNETS.OUT_FEATURES", "MODEL.ANCHOR_GENERATOR.SIZES",
     "DATASETS.REGISTER", "MODEL.DEVICE", "SEED", "SOLVER.IMS_PER_BATCH", "SOLVER.UNIT", "MODEL", "NOTHING"]
)  # fmt: skip
words = st.sampled_from(
    ["()", "(1,)", "[[1]]", "-1", "0", "1e400", "nan", "[", "None", "cpu", "epochs", "{}"]
) | st.text(max_size=8)


@fuzz
@given(opts=st.lists(st.tuples(keys, words), max_size=3))
def test_odd_settings(tmp_path_factory, opts):
    path = tmp_path_factory.getbasetemp() / "sound.yaml"
    path.write_bytes(YAML)
    load(path, [part for pair in opts for part in pair])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ToyRun(folder).train(2)
    return folder / "model_final.pth", (folder / "model_final.pth").read_bytes()


@fuzz
@given(data=st.data())
def test_damaged_checkpoints(checkpoint, data):
    path, whole = checkpoint
    content = data.draw(damaged(whole))
    path = path.with_name("damaged.pth")
    path.write_bytes(content)
    with no_hang(), contextlib.suppress(UserError):
        found = read_run_checkpoint(path)
        if seal_holds(path):
            theirs = torch.load(checkpoint[0], weights_only=True)["model"]
            assert all(torch.equal(found["model"][key], theirs[key]) for key in theirs)
    with no_hang(), contextlib.suppress(UserError):
        read_checkpoint(str(path))


def test_the_examples_are_sound_before_they_are_damaged(tmp_path, checkpoint):
    (tmp_path / "c.yaml").write_bytes(YAML)
    cfg = STOCK.clone()
    load_config(cfg, str(tmp_path / "c.yaml"))
    check_config(cfg, eval_only=False)
    assert read_run_checkpoint(checkpoint[0])["iteration"] == 1
