"""Seconds of a step and of an evaluated image, from the real training in this process."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import time
from contextlib import suppress

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer

from ..detection.data.loaders import (
    register_sets,
    test_loader_from_config,
    train_dicts_from_config,
    train_loader_from_config,
)
from ..detection.initial_weights import apply_preset, load_initial_weights
from ..detection.optimize import for_inference
from ..detection.solver import precision_of, resolve_schedule
from ..engine.sampler import seed_everything
from ..engine.signals import Stopped
from ..engine.trainer import BadStep, StopSignal, Trainer
from ..errors import UserError
from ..weights import Reader, read_checkpoint
from .choices import Measured

STEPS, WARM_UP, IMAGES = 8, 2, 3
LONG = 6.0
"""Seconds after which no more steps are timed: of settings that take so long, smaller ones will be timed too."""


class _Enough(Exception):
    """Two steps are known, and they took :data:`LONG`."""


class _Clock(HookBase):
    """The seconds of each step, the wait for its data included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_train(self) -> None:
        self._last = time.perf_counter()

    def after_step(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        if len(self.seconds) > 1 and sum(self.seconds) > LONG:
            raise _Enough


def measure(cfg: CfgNode, read: Reader = read_checkpoint) -> Measured:
    """Medians over a few steps and images of the run that ``cfg`` describes; nothing is written.

    Raises:
        UserError: as the training itself.
        Stopped: by a signal.
    """
    quiet = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return _measure(cfg, read)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Measured(math.inf, math.inf)
    except StopSignal as stop:
        raise Stopped("auto: stopped; the same command resumes") from stop
    except BadStep as bad:
        raise UserError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r}: {bad} in the first steps; try other --weights") from bad
    finally:
        logging.disable(quiet)


def _measure(cfg: CfgNode, read: Reader) -> Measured:
    cfg = apply_preset(cfg, read)
    register_sets(cfg.DATASETS.REGISTER)
    dicts = train_dicts_from_config(cfg)
    cfg = resolve_schedule(cfg, len(dicts))
    seed_everything((0,))
    model = build_model(cfg)
    load_initial_weights(cfg, model, read=read)
    optimizer, batch = build_optimizer(cfg, model), cfg.SOLVER.IMS_PER_BATCH
    trainer, clock = Trainer(model, optimizer, seed=0, precision=precision_of(cfg), batch=batch), _Clock()
    trainer.register_hooks([clock])
    trainer.set_data_loader(train_loader_from_config(cfg, 0, 0, dicts))
    with suppress(_Enough):
        trainer.train(0, WARM_UP + STEPS)
    trainer.release()
    keys, seconds = cfg.MODEL.RESNEXT, []
    inference = for_inference(model.eval(), keys.INFERENCE_DTYPE, keys.INFERENCE_BACKEND)
    with torch.no_grad():
        for batch in itertools.islice(test_loader_from_config(cfg, cfg.DATASETS.TEST[0]), IMAGES):
            start = time.perf_counter()
            inference(batch)
            seconds.append(time.perf_counter() - start)
    return Measured(
        statistics.median(clock.seconds[min(WARM_UP, len(clock.seconds) - 1) :]), statistics.median(seconds)
    )
