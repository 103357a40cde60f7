"""A run: what both trainings do around their steps, from the first weights to the last evaluation.

A :class:`Run` is given the network, its data and the evaluation, and owns all that both trainings share: precision and
processes, the average of the weights, checkpoints, resuming, evaluations, measurements, and what is left behind when a
step goes wrong or a signal comes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from signal import Signals
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.solver.lr_scheduler import LRMultiplier
from detectron2.utils import comm
from torch import nn

from ..errors import RunFailed, UserError
from ..files import RESULTS_FILE
from .averaging import WeightAverage, average_of
from .causes import cause_of
from .checkpoint import BestCheckpointer, RunCheckpointer
from .config import write_config
from .dump import dump_folder, summary, write_dump
from .evaluations import EarlyStop, Evaluations
from .folder import archive
from .hooks import Checkpoints, Writers
from .processes import decided_by_main, wrap_distributed
from .signals import Stopped
from .trainer import BadStep, StopSignal, Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The flags of a training command.

    Attributes:
        resume: continue from the newest checkpoint of OUTPUT_DIR.
        eval_only: evaluate, do not train.
        trust_pickle: also open weights that may run code.
        given: the keys that stand on the command line.
    """

    resume: bool = False
    eval_only: bool = False
    trust_pickle: bool = False
    given: tuple[str, ...] = ()


SET_SIZE = "training_images"
"""Where the metadata of a checkpoint says how many images the run trains on."""

NEW_RUN = RunOptions()
"""No flag given."""


class Run:
    """One training, in every process of it: :meth:`evaluate_with`, then :meth:`begin`, then :meth:`train`.

    Args:
        model: whose weights are saved.
        optimizer, scheduler: of the model's parameters.
        losses: the module around ``model`` that gives the losses of a batch, if ``model`` itself does not.
        folder: OUTPUT_DIR.
        metadata: plain values that travel inside every checkpoint.
        iterations: optimizer steps of the whole run.
        seed, precision, accumulate: of :class:`.trainer.Trainer`.
        given_seed: the user has named the seed; a resumed run keeps its own, and says so.
        ema_decay: of the average of the weights, evaluated and saved beside them; 0 for none.
        batch: images of one step, over all processes.
        config: YAML that goes into the folder as ``config.yaml``; "" for none.
        before_saving: hooks whose changes to the model are saved with it.
        checkpoint_period: iterations.
        keep_checkpoints: how many of the periodic ones stay; None for all.
        tracker: of :data:`.tracking.TRACKERS`; "" for none.

    Attributes:
        evaluated: the network that evaluations see: ``model``, or the average of its weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRMultiplier,
        *,
        losses: nn.Module | None = None,
        folder: str,
        metadata: dict[str, Any],
        iterations: int,
        seed: int,
        given_seed: bool = False,
        precision: str = "fp32",
        accumulate: int = 1,
        ema_decay: float = 0.0,
        batch: int = 1,
        config: str = "",
        before_saving: Sequence[HookBase] = (),
        checkpoint_period: int,
        keep_checkpoints: int | None = None,
        tracker: str = "",
    ) -> None:
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.folder, self.iterations, self.evaluated = folder, iterations, model
        self.trainer = Trainer(
            wrap_distributed(model if losses is None else losses),
            optimizer,
            seed=seed,
            precision=precision,
            accumulate=accumulate,
            batch=batch,
        )
        self._config, self.given_seed = config, given_seed
        self._saved: dict[str, Any] = {"trainer": self.trainer}
        first: list[HookBase] = []
        if ema_decay:
            average = average_of(model, ema_decay)
            self._saved["model_ema"], self.evaluated = average, average.module
            first.append(WeightAverage(average, model))
        self.checkpointer = RunCheckpointer(model, folder, metadata, **self._saved)
        self.writers, self.results = Writers(folder, tracker), dict[str, Any]()
        self._described: dict[str, Any] = {}
        self.trainer.register_hooks(
            [
                *first,
                hooks.IterationTimer(),
                hooks.LRScheduler(optimizer, scheduler),
                *before_saving,
                Checkpoints(self.checkpointer, checkpoint_period, keep_checkpoints),
            ]
        )
        self._settings = settings_of(optimizer)

    def evaluate_with(
        self,
        evaluate: Callable[[nn.Module, int], Mapping[str, Any]],
        period: int,
        *,
        metric: str,
        mode: str = "max",
        patience: int = 0,
        describe: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda results: {},
    ) -> None:
        """Evaluate every ``period`` iterations and after the last, as :class:`.evaluations.Evaluations` does.

        Args:
            evaluate: given :attr:`evaluated` and the iterations done, returns results on the first process.
            period, metric, mode, patience: of :class:`.evaluations.Evaluations`.
            describe: what the metadata of the best checkpoint, and of the last, say of their results.
        """
        best = BestCheckpointer(self.model, self.folder, dict(self.checkpointer.metadata), **self._saved)

        def evaluation(done: int) -> dict[str, Any]:
            self.results = dict(evaluate(self.evaluated, done))
            self._described = dict(describe(self.results)) if self.results else {}
            self.trainer.model.train()
            return self.results

        def save_best(done: int) -> None:
            best.metadata |= self._described
            best.save("model_best", iteration=done - 1)

        more = {
            "batch": self.trainer.batch,
            "metric": metric,
            "mode": mode,
            "patience": patience,
            "save_best": save_best,
        }
        self.trainer.register_hooks([Evaluations(evaluation, period, self.folder, **more)])

    def begin(
        self,
        *,
        resume: bool,
        check: Callable[[Mapping[str, Any], str], None] | None = None,
        load_initial_weights: Callable[[], object] = lambda: None,
    ) -> int:
        """Load what the run starts from, in every process; returns the iteration it starts with.

        Args:
            resume: from the newest checkpoint of the folder, where there is one.
            check: of :meth:`.checkpoint.RunCheckpointer.resume`.
            load_initial_weights: called for a new run.

        Raises:
            UserError: of :meth:`.checkpoint.RunCheckpointer.resume` and ``load_initial_weights``.
        """
        seed, batch = self.trainer.seed, self.trainer.batch

        def checked(found: Mapping[str, Any], where: str) -> None:
            if check is not None:
                check(found, where)
            before, now = found.get(SET_SIZE), self.checkpointer.metadata.get(SET_SIZE)
            if before is not None and before != now:
                logger.warning(
                    f"{where}: the training set had {before} images and has {now}: from here on the order is that of "
                    "the new set, and epochs count its images"
                )

        last = self.checkpointer.resume(checked) if resume else None
        if last is None:
            if resume:
                logger.warning("--resume: %s holds no checkpoint yet, so this is a new run", self.folder)
            load_initial_weights()
            return 0
        if self.trainer.seed != seed and self.given_seed:
            logger.warning(f"SEED {seed} has no effect: the run began with {self.trainer.seed}, and resumes with it")
        start = last + 1
        if self.trainer.images != start * batch:
            start = self.trainer.images // batch
            self.scheduler.last_epoch = start
            logger.warning(
                f"the checkpoint has seen {self.trainer.images} images in {last + 1} iterations; with {batch} images "
                f"in each this run resumes at iteration {start} of {self.iterations}"
            )
        if start < self.iterations:
            apply_settings(self.optimizer, self.scheduler, self._settings)
        else:
            logger.warning(f"nothing is left to train: {start} of {self.iterations} iterations are done")
        return start

    def train(self, data: Iterable, start: int) -> dict[str, Any]:
        """Train from iteration ``start`` of :meth:`begin` on.

        Args:
            data: endless batches, from the first of that iteration on.

        Returns:
            The results of the last evaluation.

        Raises:
            UserError: unusable data, a loss that is not finite, a full disk.
            Stopped: a signal came, and the state is saved.
        """
        comm.synchronize()  # all have read what they start from before the first process moves an earlier run's files
        decided_by_main(lambda: self._prepare_folder(start))
        self.trainer.register_hooks([self.writers])
        self.trainer.set_data_loader(data)
        logger.info("training from iteration %d to %d, seed %d", start, self.iterations, self.trainer.seed)
        try:
            self.trainer.train(start, self.iterations)
            if decided_by_main(lambda: bool(self._described)):
                decided_by_main(lambda: self._save_last(max(start, self.iterations)))
        except EarlyStop as stop:
            done = stop.done
            decided_by_main(lambda: self._save_last(done))
        except BadStep as bad:
            error = UserError(self._dump(bad))
            logger.error("%s", error)
            raise error from bad
        except StopSignal as stop:
            stopped = Stopped(
                f"stopped by {Signals(stop.signal).name} after iteration {self.trainer.iter}; saved "
                f"model_{self.trainer.iter:07d}.pth in {self.folder}: the same command with --resume continues with "
                "the next"
            )
            logger.error("%s", stopped)
            raise stopped from None
        except Exception as error:
            cause = cause_of(error)
            logger.error("%s", cause, exc_info=None if isinstance(cause, UserError | RunFailed) else error)
            raise
        finally:
            if hasattr(self.trainer, "storage"):
                self.writers.close(self.trainer.storage)
            self.trainer.release()
        return self.results

    def _save_last(self, done: int) -> None:
        """Write the last checkpoint, with what its evaluation has found."""
        self.checkpointer.metadata |= self._described
        self.checkpointer.save("model_final", iteration=done - 1)
        # Numbers older than their network count as another network's, in the tables of ``reproduce`` and ``transfer``.
        with contextlib.suppress(FileNotFoundError):
            os.utime(os.path.join(self.folder, RESULTS_FILE))

    def _prepare_folder(self, start: int) -> None:
        if start == 0:
            archive(self.folder)
        if self._config:
            write_config(self._config, self.folder)

    def _dump(self, bad: BadStep) -> str:
        """Write this process' share of the dump; returns the message that ends the run."""
        trainer = self.trainer
        describe = getattr(trainer.data_loader, "describe", None)
        numbers = [trainer.iter * trainer.accumulate + part for part in range(trainer.accumulate)]
        facts = {
            "reason": f"{bad.reason.value} at iteration {trainer.iter}",
            "iteration": trainer.iter,
            "seed": trainer.seed,
            "class_names": list(self.checkpointer.metadata.get("class_names") or ()),
            "process": comm.get_rank(),
            "processes": comm.get_world_size(),
            "accumulate": trainer.accumulate,
            "precision": trainer.precision,
            "loss_scale": trainer.scaler.get_scale(),
            "learning_rate": sorted({group["lr"] for group in trainer.optimizer.param_groups}),
            "losses": [{name: loss.item() for name, loss in part.items()} for part in bad.parts],
            "gradient_norms": trainer.gradient_norms(),
            "batches": [{"batch": n, "samples": describe(n) if describe else []} for n in numbers],
        }
        folder = dump_folder(self.folder, trainer.iter)
        write_dump(folder, comm.get_rank(), facts, self.model)
        comm.synchronize()
        return (
            f"{facts['reason']}: {summary(facts)}; dumped to {folder}, lower SOLVER.BASE_LR or look at these images "
            f"(the same tool with --replay {folder} runs the step again)"
        )


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Learning rate, weight decay, ... of each group of parameters, for :func:`apply_settings`."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def apply_settings(optimizer: torch.optim.Optimizer, scheduler: LRMultiplier, settings: list[dict[str, Any]]) -> None:
    """After a resume, put the config's settings over those that the checkpoint has brought; a change is logged.

    Args:
        settings: :func:`settings_of` the optimizer, taken after the scheduler was made and before the resume.
    """
    changed = {}
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        for key, value in own.items():
            if key != "lr" and group.get(key) != value:  # "lr" is "initial_lr" times the schedule, below
                changed[key] = f"{key} {group.get(key)} -> {value}"
                group[key] = value
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
        group["lr"] = rate
    if changed:
        logger.warning("the config is not what the run had: %s", "; ".join(changed.values()))
