"""What happens around the steps of both trainings: checkpoints and measurements. :mod:`.run` puts them together."""

from __future__ import annotations

import logging
import os

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter, JSONWriter, TensorboardXWriter
from fvcore.common.checkpoint import PeriodicCheckpointer

from .checkpoint import RunCheckpointer
from .processes import decided_by_main

logger = logging.getLogger(__name__)


class Checkpoints(PeriodicCheckpointer, HookBase):
    """Saves every ``period`` iterations, when a signal stops the run, and after the last one as ``model_final``.

    The main process saves for all. Evaluation comes behind it, so that what an evaluation says is never lost.
    """

    def __init__(self, checkpointer: RunCheckpointer, period: int, max_to_keep: int | None = None) -> None:
        super().__init__(checkpointer, period, max_to_keep=max_to_keep)

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter
        decided_by_main(self._clear_up)

    def _clear_up(self) -> None:
        self.checkpointer.remove_parts()
        if self.trainer.start_iter == 0:
            self.checkpointer.set_aside()
        self.recent_checkpoints = self.checkpointer.periodic_checkpoints()  # those that the run has left so far

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.max_iter:
            decided_by_main(lambda: self.step(self.trainer.iter))
        elif self.trainer.stopping:
            decided_by_main(lambda: self.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter))


class Writers(HookBase):
    """Terminal (losses, time left, speed), ``metrics.json`` and TensorBoard, on the main process.

    Args:
        folder: OUTPUT_DIR.
        period: iterations between two lines.
    """

    def __init__(self, folder: str | os.PathLike, period: int = 20) -> None:
        self.folder, self.period = folder, period
        self._sinks: list[EventWriter] = []

    def before_train(self) -> None:
        decided_by_main(self._open)

    def _open(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        self._sinks.append(CommonMetricPrinter(self.trainer.max_iter))
        self._sinks.append(JSONWriter(os.path.join(self.folder, "metrics.json")))
        self._sinks.append(TensorboardXWriter(self.folder))

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
