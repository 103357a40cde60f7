"""Whole runs: early stop, rates after a resume, the average of the weights."""

from __future__ import annotations

import json

import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to mend)

# isort: split
from resnext_det.detection.train import run
from resnext_det.engine.checkpoint import read_run_checkpoint
from resnext_det.engine.evaluations import read_evaluations


def test_a_run_stops_early_and_can_go_on(tiny_run):
    more = ["SOLVER.MAX_ITER", 40, "TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 1, "TEST.REPORT", False]
    more += ["SOLVER.BASE_LR", 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0]  # nothing detected: AP stays 0
    results = run(tiny_run.config("stopped", *more), False, False)
    folder = tiny_run.folder / "stopped"
    assert results["bbox"]["AP"] == 0
    assert [record["iteration"] for record in read_evaluations(folder / "evaluations.jsonl")] == [1, 2]
    assert read_run_checkpoint(folder / "model_best.pth")["iteration"] == 0
    assert read_run_checkpoint(folder / "model_final.pth")["iteration"] == 1
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    run(tiny_run.config("stopped", *more, "TEST.PATIENCE", 0, "SOLVER.MAX_ITER", 3), True, False)
    assert read_evaluations(folder / "evaluations.jsonl")[-1]["iteration"] == 3


def test_a_resumed_run_takes_the_rates_of_its_config(tiny_run):
    run(tiny_run.config("rates", "TEST.REPORT", False), False, False)
    more = ["SOLVER.MAX_ITER", 5, "SOLVER.BASE_LR", 0.002, "SOLVER.WEIGHT_DECAY", 0.5, "TEST.REPORT", False]
    run(tiny_run.config("rates", *more), True, False)
    log = (tiny_run.folder / "rates" / "log.txt").read_text()
    assert "initial_lr 0.01 -> 0.002" in log and "weight_decay 0.0001 -> 0.5" in log
    state = read_run_checkpoint(tiny_run.folder / "rates" / "model_final.pth")["trainer"]
    group = state["optimizer"]["param_groups"][0]
    assert group["lr"] == group["initial_lr"] == 0.002 and group["weight_decay"] == 0.5
    assert state["hooks"]["LRScheduler"]["base_lrs"][0] == 0.002
    metrics = (tiny_run.folder / "rates" / "metrics.json").read_text().splitlines()
    rates = {line["iteration"]: line["lr"] for line in map(json.loads, metrics) if "lr" in line}
    assert rates == {3: 0.01, 4: 0.002}, "from the first step after the resume on"


def test_the_average_of_the_weights_is_kept_and_evaluated(tiny_run):
    more = ["SOLVER.EMA_DECAY", 0.5, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.REPORT", False]
    run(tiny_run.config("average", *more), False, False)
    files = ["model_0000000.pth", "model_0000001.pth", "model_final.pth"]
    states = [read_run_checkpoint(tiny_run.folder / "average" / name) for name in files]
    name = "roi_heads.box_predictor.cls_score.weight"
    expected = states[0]["model"][name]
    for state in states[1:]:
        assert not torch.equal(state["model"][name], states[0]["model"][name])
        expected = 0.5 * expected + 0.5 * state["model"][name]
    torch.testing.assert_close(states[-1]["model_ema"]["module." + name], expected)

    from detectron2.modeling import build_model

    from resnext_det.detection.train import load_to_evaluate

    for settings, newest in ((["MODEL.WEIGHTS", tiny_run.folder / "average" / files[-1]], False), ([], True)):
        cfg = tiny_run.config("average", *more, *settings)
        model = build_model(cfg)
        load_to_evaluate(cfg, model, newest=newest)
        torch.testing.assert_close(model.state_dict()[name], expected)
