"""Schedules: epochs, other batches, mistakes at the start; accumulation and precision in a run."""

from __future__ import annotations

import pytest
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det import UserError
from resnext_det.detection.solver import precision_of, resolve_schedule
from resnext_det.detection.train import run
from resnext_det.engine.checkpoint import read_run_checkpoint

COCO = ["SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 0.02, "SOLVER.MAX_ITER", 90000, "SOLVER.STEPS", (60000, 80000)]
COCO += ["SOLVER.WARMUP_ITERS", 1000, "SOLVER.CHECKPOINT_PERIOD", 5000, "TEST.EVAL_PERIOD", 10000]


def schedule(cfg):
    keys = ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS", "CHECKPOINT_PERIOD")
    return [cfg.SOLVER[key] for key in keys] + [cfg.TEST.EVAL_PERIOD]


def test_a_smaller_batch_takes_more_and_smaller_steps(tiny_run, caplog):
    caplog.set_level("INFO")
    cfg = tiny_run.config("x", *COCO, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.REFERENCE_BATCH", 16)
    scaled = resolve_schedule(cfg, 117266)
    assert schedule(scaled) == [0.005, 360000, (240000, 320000), 4000, 20000, 40000]
    assert "learning rate 0.02 -> 0.005" in caplog.text and "12.3 epochs of 117266" in caplog.text
    assert schedule(resolve_schedule(scaled, 117266)) == schedule(scaled), "scaling twice"
    plain = tiny_run.config("x", *COCO, "SOLVER.IMS_PER_BATCH", 4)
    assert schedule(resolve_schedule(plain, 117266)) == schedule(plain), "without a reference"


def test_epochs(tiny_run):
    epochs = ["SOLVER.UNIT", "epochs", "SOLVER.MAX_ITER", 12, "SOLVER.STEPS", (8, 11), "SOLVER.CHECKPOINT_PERIOD", 1]
    epochs += ["SOLVER.WARMUP_ITERS", 100]
    cfg = tiny_run.config("x", *COCO, *epochs, "TEST.EVAL_PERIOD", 2, "SOLVER.REFERENCE_BATCH", 32)
    assert schedule(resolve_schedule(cfg, 1000)) == [0.01, 750, (500, 688), 200, 62, 125]
    assert schedule(resolve_schedule(tiny_run.config("x", *COCO, *epochs, "TEST.EVAL_PERIOD", 0), 1000))[-1] == 0
    with pytest.raises(UserError, match="SOLVER.WARMUP_ITERS 100: not before the end, 75 iterations"):
        resolve_schedule(cfg, 100)


@pytest.mark.parametrize(
    "settings, message",
    [
        (["SOLVER.MAX_ITER", 60000], "SOLVER.STEPS .* must rise and end before SOLVER.MAX_ITER 60000"),
        (["SOLVER.STEPS", (80000, 60000)], "SOLVER.STEPS"),
        (["SOLVER.UNIT", "epoch"], "SOLVER.UNIT 'epoch': choose from iterations, epochs"),
        (["SOLVER.ACCUMULATE", 3], "SOLVER.IMS_PER_BATCH 16: not divisible by SOLVER.ACCUMULATE 3"),
        (["SOLVER.PRECISION", "fp8"], "SOLVER.PRECISION 'fp8'"),
        (["SOLVER.EMA_DECAY", 1.0], "SOLVER.EMA_DECAY"),
        (["SOLVER.REFERENCE_BATCH", -1], "SOLVER.REFERENCE_BATCH"),
        (["SOLVER.CHECKPOINT_PERIOD", 0], "SOLVER.CHECKPOINT_PERIOD 0"),
    ],
)
def test_mistakes_are_found_at_the_start(tiny_run, settings, message):
    with pytest.raises(UserError, match=message):
        resolve_schedule(tiny_run.config("x", *COCO, *settings), 1000)


def test_steps_that_fall_together(tiny_run):
    epochs = ["SOLVER.UNIT", "epochs", "SOLVER.MAX_ITER", 12, "SOLVER.STEPS", (8, 11), "SOLVER.CHECKPOINT_PERIOD", 1]
    with pytest.raises(UserError, match="fall together in a run of only 2 iterations"):
        resolve_schedule(tiny_run.config("x", *COCO, *epochs), 2)


def test_precision(tiny_run):
    assert precision_of(tiny_run.config("x")) == "fp32"
    assert precision_of(tiny_run.config("x", "SOLVER.AMP.ENABLED", True)) == "fp16"
    assert precision_of(tiny_run.config("x", "SOLVER.AMP.ENABLED", True, "SOLVER.PRECISION", "bf16")) == "bf16"


def test_accumulated_batches_make_the_step_of_the_whole_batch(tiny_run, tmp_path):
    """Frozen statistics and every anchor and proposal in the loss: then only rounding tells the two apart."""
    norm = ["MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    norm += ["MODEL.RESNETS.WIDTH_PER_GROUP", 16, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10000]
    norm += ["MODEL.RPN.POSITIVE_FRACTION", 1.0, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1000]
    norm += ["MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"]
    norm += ["SOLVER.MAX_ITER", 1, "INPUT.RANDOM_FLIP", "none", "TEST.REPORT", False]
    steps = []
    for parts in (1, 2):
        cfg = tiny_run.config(f"parts{parts}", *norm, "SOLVER.ACCUMULATE", parts)
        run(cfg)
        steps.append(read_run_checkpoint(tiny_run.folder / f"parts{parts}" / "model_final.pth")["model"])
    name = "proposal_generator.rpn_head.conv.weight"
    assert torch.isfinite(steps[0][name]).all()
    for name, value in steps[0].items():
        torch.testing.assert_close(steps[1][name], value, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(tiny_run, precision):
    run(tiny_run.config(precision, "SOLVER.PRECISION", precision, "TEST.REPORT", False))
    state = read_run_checkpoint(tiny_run.folder / precision / "model_final.pth")["model"]
    assert all(value.dtype in (torch.float32, torch.int64) and torch.isfinite(value).all() for value in state.values())
