"""Evaluations of a run: written down, the best kept, early stop, and all of it again after a resume."""

from __future__ import annotations

import json
import math

import pytest
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to mend)

# isort: split
from detectron2.engine import TrainerBase

from resnext_det.detection.hooks import EarlyStop, Evaluations, find_metric, read_evaluations
from resnext_det.detection.train import run
from resnext_det.engine.checkpoint import read_run_checkpoint


class Idle(TrainerBase):
    def run_step(self) -> None:
        self.storage.put_scalar("loss", 0.0)


def train(folder, values, start=0, stop=5, **choices):
    """Evaluate after every iteration with the given AP50; returns (iterations saved as best, iterations done)."""
    saved, waiting = [], iter(values)

    def evaluate():
        return {"bbox": {"AP": 0.0, "AP50": next(waiting)}}

    hook = Evaluations(evaluate, 1, folder, metric="AP50", save_best=saved.append, **choices)
    trainer = Idle()
    trainer.register_hooks([hook])
    try:
        trainer.train(start, stop)
    except EarlyStop:
        return saved, trainer.iter + 1
    return saved, trainer.iter


def test_every_evaluation_is_written_and_the_best_is_saved(tmp_path):
    saved, done = train(tmp_path, [10.0, 30.0, math.nan, 30.0, 31.0])
    assert (saved, done) == ([1, 2, 5], 5)
    records = read_evaluations(tmp_path / "evaluations.jsonl")
    assert [record["iteration"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["bbox"]["AP50"] for record in records] == [10.0, 30.0, None, 30.0, 31.0]


def test_early_stop_counts_evaluations_without_progress(tmp_path):
    assert train(tmp_path, [10.0, 9.0, 11.0, 10.0, 9.0, 50.0], stop=9, patience=2) == ([1, 3], 5)


def test_a_resumed_run_knows_what_was_best(tmp_path):
    train(tmp_path, [10.0, 30.0, 20.0, 40.0], stop=4)
    # From the checkpoint after 3: the evaluation after 4 is of a future that is forgotten.
    saved, done = train(tmp_path, [25.0, 26.0, 27.0], start=3, stop=9, patience=2)
    assert (saved, done) == ([], 4), "one evaluation without progress was before the interruption"
    assert [record["bbox"]["AP50"] for record in read_evaluations(tmp_path / "evaluations.jsonl")] == [10, 30, 20, 25]


def test_an_evaluation_that_was_due_after_the_checkpoint_is_made_up_for(tmp_path):
    train(tmp_path, [10.0, 9.0], stop=2)
    # Killed after the checkpoint of the third iteration and before its evaluation.
    assert train(tmp_path, [8.0, 7.0, 6.0], start=3, stop=9, patience=3) == ([], 4)
    assert [record["iteration"] for record in read_evaluations(tmp_path / "evaluations.jsonl")] == [1, 2, 3, 4]
    with pytest.raises(EarlyStop) as stopped:
        trainer = Idle()
        hook = Evaluations(lambda: {"bbox": {"AP50": 5.0}}, 1, tmp_path, metric="AP50", patience=5)
        trainer.register_hooks([hook])
        trainer.train(5, 9)
    assert stopped.value.done == 6, "the missed one, after 5, was the fourth in vain"


def test_no_evaluation_after_a_failure(tmp_path):
    class Failing(Idle):
        def run_step(self):
            if self.iter == 1:
                raise RuntimeError("broken")

    trainer = Failing()
    trainer.register_hooks([Evaluations(lambda: pytest.fail("evaluated"), 0, tmp_path)])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train(0, 2)


def test_the_metric_is_found_in_nested_results():
    results = {"bbox": {"AP": None}, "segm": {"AP": 3.0}}
    assert find_metric(results, "AP") == 3.0
    assert find_metric({"set": {"bbox": {"AP50": 2.0}}}, "AP50") == 2.0 and find_metric(results, "AR") is None


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
