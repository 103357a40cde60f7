"""What happens around the steps of both trainings: checkpoints and measurements. :mod:`.run` puts them together."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter, JSONWriter, TensorboardXWriter
from fvcore.common.checkpoint import PeriodicCheckpointer
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn

from .checkpoint import RunCheckpointer
from .processes import decided_by_main
from .sampler import seed_everything
from .tracking import TRACKERS

logger = logging.getLogger(__name__)


class Checkpoints(PeriodicCheckpointer, HookBase):
    """Saves every ``period`` iterations, when a signal stops the run, and after the last one as ``model_final``.

    The main process saves for all. Evaluation comes behind it: a failure there costs no checkpoint.
    """

    def __init__(self, checkpointer: RunCheckpointer, period: int, max_to_keep: int | None = None) -> None:
        super().__init__(checkpointer, period, max_to_keep=max_to_keep)

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter
        self.recent_checkpoints = self.checkpointer.periodic_checkpoints()  # those that the run has left so far

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.max_iter:
            decided_by_main(lambda: self.step(self.trainer.iter))
        elif self.trainer.stopping:
            decided_by_main(lambda: self.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter))


class PreciseBatchNorm(HookBase):
    """Batch-norm statistics of the weights as they are, measured on training data before each evaluation.

    Training never reads them, so that nothing else changes. The data and the random numbers depend on (seed, iterations
    done) alone: a resumed run measures the same. Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), Sec. 3; the
    arithmetic is fvcore's.

    Args:
        data: given the run's seed and the iterations done, training batches from there on.
        period: iterations between evaluations; 0 measures after the last one only.
        batches: to measure on.
    """

    def __init__(self, model: nn.Module, data: Callable[[int, int], Iterable], period: int, batches: int) -> None:
        self.model, self.data, self.period, self.batches = model, data, period, batches

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self.period > 0 and done % self.period == 0):
            seed_everything((self.trainer.seed, done))
            with EventStorage():  # what the model reports of these batches is of no step
                update_bn_stats(self.model, self.data(self.trainer.seed, done), self.batches)
            logger.info("batch norms measured on %d batches after %d iterations", self.batches, done)


class Writers(HookBase):
    """Terminal (losses, time left, speed), ``metrics.json``, TensorBoard and a tracker, on the main process.

    Args:
        folder: OUTPUT_DIR.
        tracker: of :data:`.tracking.TRACKERS`, "" for none.
        period: iterations between two lines.
    """

    def __init__(self, folder: str | os.PathLike, tracker: str = "", period: int = 20) -> None:
        self.folder, self.tracker, self.period = folder, tracker, period
        self._sinks: list[EventWriter] = []

    def before_train(self) -> None:
        decided_by_main(self._open)

    def _open(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        self._sinks.append(CommonMetricPrinter(self.trainer.max_iter))
        self._sinks.append(JSONWriter(os.path.join(self.folder, "metrics.json")))
        self._sinks.append(TensorboardXWriter(self.folder))
        if self.tracker:
            self._sinks.append(TRACKERS[self.tracker](self.folder))

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            decided_by_main(self._write)

    def after_train(self) -> None:
        decided_by_main(self._close)

    def _write(self) -> None:
        for sink in self._sinks:
            sink.write()

    def _close(self) -> None:
        while self._sinks:
            sink = self._sinks.pop(0)
            sink.write()
            sink.close()

    def close(self, storage: EventStorage) -> None:
        """Write what there is after a failure; nothing is left to write after :meth:`after_train`.

        The other processes may be elsewhere, and the failure matters more than this one.
        """
        try:
            with storage:
                self._close()
        except OSError as error:
            logger.warning("the last measurements are not written: %s", error)
