"""Evaluations of a run: written down, the best kept, early stop, and all of it again after a resume."""

from __future__ import annotations

import math

import pytest

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.engine import TrainerBase

from resnext_det.engine.evaluations import EarlyStop, Evaluations, find_metric, read_evaluations


class Idle(TrainerBase):
    def run_step(self) -> None:
        self.storage.put_scalar("loss", 0.0)


def train(folder, values, start=0, stop=5, **choices):
    """Evaluate after every iteration with the given AP50; returns (iterations saved as best, iterations done)."""
    saved, waiting = [], iter(values)

    def evaluate(_done):
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


def test_smaller_is_better_where_the_metric_is_an_error(tmp_path):
    """Results that are not nested, as pretraining's; what was best is known after a resume."""
    for start, values, expected in ((0, [50.0, 40.0, 45.0], [1, 2]), (3, [42.0, 39.0], [5])):
        saved, errors = [], dict(enumerate(values, start + 1))
        trainer = Idle()
        evaluations = Evaluations(
            lambda done, errors=errors: {"top1_error": errors[done]},
            *(1, tmp_path),
            metric="top1_error",
            mode="min",
            save_best=saved.append,
        )
        trainer.register_hooks([evaluations])
        trainer.train(start, start + len(values))
        assert saved == expected
    assert [r["top1_error"] for r in read_evaluations(tmp_path / "evaluations.jsonl")] == [50, 40, 45, 42, 39]


def test_an_evaluation_counts_once_its_best_checkpoint_is_saved(tmp_path):
    """A run that dies while it saves evaluates again, and saves."""

    def full_disk(done):
        raise OSError("disk full")

    trainer = Idle()
    results = {"bbox": {"AP": 10.0}}
    trainer.register_hooks([Evaluations(lambda done: results, 1, tmp_path, save_best=full_disk)])
    with pytest.raises(OSError, match="disk full"):
        trainer.train(0, 5)
    assert not read_evaluations(tmp_path / "evaluations.jsonl")
    saved = []
    trainer = Idle()
    trainer.register_hooks([Evaluations(lambda done: results, 1, tmp_path, save_best=saved.append)])
    trainer.train(1, 3)
    assert saved == [1]


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
        hook = Evaluations(lambda done: {"bbox": {"AP50": 5.0}}, 1, tmp_path, metric="AP50", patience=5)
        trainer.register_hooks([hook])
        trainer.train(5, 9)
    assert stopped.value.done == 6, "the missed one, after 5, was the fourth in vain"


def test_the_best_of_a_made_up_evaluation_is_that_of_its_own_step(tmp_path):
    """Of the trainer, which the checkpoint holds, and of the numbers that are logged."""
    seen = []
    trainer = Idle()
    save = lambda done: seen.append((done, trainer.iter, trainer.storage.iter))  # noqa: E731
    trainer.register_hooks([Evaluations(lambda done: {"AP": float(done)}, 2, tmp_path, save_best=save)])
    trainer.train(2, 5)
    assert seen == [(2, 1, 1), (4, 3, 3), (5, 5, 5)]


def test_no_evaluation_after_a_failure(tmp_path):
    class Failing(Idle):
        def run_step(self):
            if self.iter == 1:
                raise RuntimeError("broken")

    trainer = Failing()
    trainer.register_hooks([Evaluations(lambda done: pytest.fail("evaluated"), 0, tmp_path)])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.train(0, 2)


def test_the_metric_is_found_in_nested_results():
    results = {"bbox": {"AP": None}, "segm": {"AP": 3.0}}
    assert find_metric(results, "AP") == 3.0
    assert find_metric({"set": {"bbox": {"AP50": 2.0}}}, "AP50") == 2.0 and find_metric(results, "AR") is None
