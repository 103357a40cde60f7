"""Evaluations of both trainings: when they are due, written down, the best checkpoint, early stop."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ..files import COUNT, METRICS, STATE_BYTES, atomic_write, finite, parse_state, read_regular
from .processes import decided_by_main

logger = logging.getLogger(__name__)

EVALUATIONS_FILE = "evaluations.jsonl"
EVALUATION = {"iteration": COUNT, "images?": COUNT, str: (float, None, METRICS)}
"""Schema of one of its lines."""


class EarlyStop(BaseException):
    """Leaves the training loop in order. Not an ``Exception``, which detectron2's loop would log as a failure.

    Attributes:
        done: iterations that were made.
    """

    def __init__(self, done: int) -> None:
        super().__init__(done)
        self.done = done


class Evaluations(HookBase):
    """Evaluates every ``period`` iterations and always after the last one, and writes every result down.

    Each evaluation is a line of ``OUTPUT_DIR/evaluations.jsonl``: ``{"iteration", "seconds", RESULTS ...}``,
    ``iteration`` counting those done. A resumed run reads there what was best and continues. If the evaluation at its
    checkpoint was interrupted, it is run first.

    Args:
        evaluate: called with the number of iterations done; returns results on the first process, nested or not, such
            as ``{"bbox": {"AP": ...}}``.
        period: iterations; 0 evaluates after the last one only.
        folder: OUTPUT_DIR.
        batch: images of one iteration; a record tells how many were seen, whatever batches a resumed run had.
        metric: decides what is best: a name such as AP or AP50, looked for in the first set; "" for none.
        mode: "max" if larger is better, "min" if smaller is.
        save_best: called whenever an evaluation is the best so far, with the number of iterations done.
        patience: evaluations in a row without a better one until :class:`EarlyStop` ends the training; 0 for none.
    """

    def __init__(
        self,
        evaluate: Callable[[int], dict],
        period: int,
        folder: str | os.PathLike,
        *,
        batch: int = 1,
        metric: str = "AP",
        mode: str = "max",
        save_best: Callable[[int], object] | None = None,
        patience: int = 0,
    ) -> None:
        self.evaluate, self.period, self.metric, self.mode = evaluate, period, metric, mode
        self.batch = batch
        self.save_best, self.patience = save_best, patience
        self.path = Path(folder) / EVALUATIONS_FILE
        self.best, self.best_iteration, self.waited = math.inf if mode == "min" else -math.inf, 0, 0

    def before_train(self) -> None:
        start = self.trainer.start_iter
        unknown = decided_by_main(lambda: self._remember(start))
        if unknown and start > 0 and self._is_due(start):
            trainer = self.trainer
            trainer.iter = trainer.storage.iter = start - 1  # as after that step: the best checkpoint holds it
            self._run(start)
            trainer.iter = trainer.storage.iter = start
            self._stop_in_vain(start)

    def _remember(self, start: int) -> bool:
        """Read what the run has found so far; whether it holds nothing about the iteration to continue from."""
        earlier = read_evaluations(self.path)
        kept = [record for record in earlier if self._images(record) <= start * self.batch]
        for record in kept:
            self._judge(record, record["iteration"])
        if len(kept) < len(earlier):
            logger.info("%s: %d evaluations of an earlier run are dropped", self.path, len(earlier) - len(kept))
            write_evaluations(self.path, kept)
        return all(self._images(record) != start * self.batch for record in kept)

    def _images(self, record: dict) -> int:
        """What a record's evaluation had seen; earlier versions wrote iterations only."""
        return record.get("images", record["iteration"] * self.batch)

    def _is_due(self, done: int) -> bool:
        return self.period > 0 and done % self.period == 0 and done < self.trainer.max_iter

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._is_due(done) and not getattr(self.trainer, "stopping", False):  # the resumed run runs it first
            self._run(done)
            self._stop_in_vain(done)

    def _stop_in_vain(self, done: int) -> None:
        if self.patience and any(comm.all_gather(self.waited >= self.patience)):
            logger.info(
                "no better %s in %d evaluations; the best, %.3f, was after %d iterations: training ends here",
                *(self.metric, self.waited, self.best, self.best_iteration),
            )
            raise EarlyStop(done)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # not after a failure
            self._run(max(self.trainer.start_iter, self.trainer.max_iter))

    def _run(self, done: int) -> None:
        start = time.perf_counter()
        results = self.evaluate(done)
        decided_by_main(lambda: self._keep(done, results, time.perf_counter() - start))

    def _keep(self, done: int, results: dict, seconds: float) -> None:
        """Compare the results with the best, write them down, and save the best checkpoint if they are it."""
        record = finite({"iteration": done, "images": done * self.batch, "seconds": round(seconds, 3), **results})
        self.trainer.storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        if self._judge(record, done) and self.save_best is not None:
            self.save_best(done)
            logger.info("%s %.3f after %d iterations is the best so far", self.metric, self.best, done)
        # Last: a run that is killed before this line runs the evaluation again and writes its best checkpoint.
        others = [o for o in read_evaluations(self.path) if self._images(o) != done * self.batch]
        write_evaluations(self.path, [*others, record])

    def _judge(self, results: dict, done: int) -> bool:
        """Whether these results are the best so far."""
        if not self.metric:
            return False
        value = find_metric(results, self.metric)
        if value is None:
            logger.warning("%s: no number after %d iterations, so nothing is compared", self.metric, done)
        elif value < self.best if self.mode == "min" else value > self.best:
            self.best, self.best_iteration, self.waited = value, done, 0
            return True
        else:
            self.waited += 1
        return False


def find_metric(results: dict, name: str) -> float | None:
    """The first number called ``name`` in nested results, depth first; None where there is none, or it is null."""
    for key, value in results.items():
        if isinstance(value, dict):
            value = find_metric(value, name)
            if value is not None:
                return value
        elif key == name and value is not None and math.isfinite(value):
            return value
    return None


def read_evaluations(path: str | os.PathLike) -> list[dict]:
    """The lines of an ``evaluations.jsonl``; none where there is no file.

    Raises:
        UserError: a line that no run has written.
    """
    if not os.path.isfile(path):
        return []
    lines = enumerate(read_regular(path, STATE_BYTES).splitlines(), start=1)
    fix = "remove the line, or the file"
    return [parse_state(line, EVALUATION, f"{path}: line {number}", fix) for number, line in lines]


def write_evaluations(path: str | os.PathLike, records: list[dict]) -> None:
    """Write an ``evaluations.jsonl`` whole: there are few lines, and a crash loses none."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
