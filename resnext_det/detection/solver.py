"""The schedule of a run in iterations of its own batch: units, another batch size, and mistakes found at the start."""

from __future__ import annotations

import logging
import math

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..engine.trainer import PRECISIONS
from ..errors import UserError

logger = logging.getLogger(__name__)

UNITS = ("iterations", "epochs")


def resolve_schedule(cfg: CfgNode, images: int) -> CfgNode:
    """A frozen copy of ``cfg`` in which every schedule counts iterations of IMS_PER_BATCH images.

    SOLVER.UNIT "epochs" turns MAX_ITER, STEPS, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD into iterations. Where
    IMS_PER_BATCH is not REFERENCE_BATCH, BASE_LR grows with the batch (Goyal et al. 2017), WARMUP_ITERS shrinks, and so
    do the others when they count iterations. What was changed is logged.

    Args:
        images: in the training set, those left out by filters not counted.

    Raises:
        UserError: a value that can only fail later; the message names the key.
    """
    check_solver(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    solver, batch = cfg.SOLVER, cfg.SOLVER.IMS_PER_BATCH
    reference = solver.REFERENCE_BATCH or batch
    per_unit = images / batch if solver.UNIT == "epochs" else reference / batch
    before = (solver.BASE_LR, solver.MAX_ITER, tuple(solver.STEPS), solver.WARMUP_ITERS)
    unit = solver.UNIT

    def iterations(value: float) -> int:
        return max(1, round(value * per_unit)) if value > 0 else 0

    solver.BASE_LR *= batch / reference
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS * reference / batch)
    solver.MAX_ITER = math.ceil(solver.MAX_ITER * per_unit)
    solver.STEPS = tuple(iterations(step) for step in solver.STEPS)
    solver.CHECKPOINT_PERIOD = iterations(solver.CHECKPOINT_PERIOD)
    cfg.TEST.EVAL_PERIOD = iterations(cfg.TEST.EVAL_PERIOD)
    if len({0, *solver.STEPS, solver.MAX_ITER}) < len(solver.STEPS) + 2:
        raise UserError(
            f"SOLVER.STEPS {before[2]}: fall together in a run of only {solver.MAX_ITER} iterations; "
            'lower SOLVER.IMS_PER_BATCH or set SOLVER.STEPS "()"'
        )
    if unit == "epochs" and solver.WARMUP_ITERS >= solver.MAX_ITER:
        raise UserError(
            f"SOLVER.WARMUP_ITERS {before[3]}: not before the end, {solver.MAX_ITER} iterations of {batch} images, "
            "so the learning rate would never be reached; lower it"
        )
    solver.UNIT, solver.REFERENCE_BATCH = "iterations", batch  # a second call changes nothing
    after = (solver.BASE_LR, solver.MAX_ITER, tuple(solver.STEPS), solver.WARMUP_ITERS)
    if before != after:
        logger.info(
            "schedule for a batch of %d (SOLVER.REFERENCE_BATCH %d): learning rate %g -> %g; %s %d, steps %s -> "
            "iterations %d, steps %s; warm-up %d -> %d",
            *(batch, reference, before[0], after[0], unit, before[1], before[2], after[1], after[2]),
            *(before[3], after[3]),
        )
    logger.info(
        "%d iterations of %d images, %.1f epochs of %d; learning rate %g, times %g at %s",
        *(solver.MAX_ITER, batch, solver.MAX_ITER * batch / images, images, solver.BASE_LR, solver.GAMMA),
        ", ".join(map(str, solver.STEPS)) or "no step",
    )
    cfg.freeze()
    return cfg


def check_solver(cfg: CfgNode) -> None:
    """Refuse solver values that could only fail later.

    Raises:
        UserError: names the key and the fix.
    """
    solver = cfg.SOLVER
    if solver.UNIT not in UNITS:
        raise UserError(f"SOLVER.UNIT {solver.UNIT!r}: choose from {', '.join(UNITS)}")
    for key in ("IMS_PER_BATCH", "MAX_ITER", "ACCUMULATE", "CHECKPOINT_PERIOD"):
        if solver[key] < 1:
            raise UserError(f"SOLVER.{key} {solver[key]}: must be at least 1")
    for key in ("BASE_LR", "MOMENTUM", "WEIGHT_DECAY", "WARMUP_ITERS"):
        if solver[key] < 0:
            raise UserError(f"SOLVER.{key} {solver[key]}: must be at least 0")
    if solver.REFERENCE_BATCH < 0:
        raise UserError(f"SOLVER.REFERENCE_BATCH {solver.REFERENCE_BATCH}: must be a batch, or 0 for no scaling")
    if not 0 <= solver.EMA_DECAY < 1:
        raise UserError(f"SOLVER.EMA_DECAY {solver.EMA_DECAY}: must be in [0, 1)")
    parts = solver.ACCUMULATE * comm.get_world_size()
    if solver.IMS_PER_BATCH % parts:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}: not divisible by SOLVER.ACCUMULATE {solver.ACCUMULATE} "
            f"times {comm.get_world_size()} processes"
        )
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = list(solver.STEPS)
        if steps != sorted(steps) or (steps and (steps[0] < 1 or steps[-1] >= solver.MAX_ITER)):
            raise UserError(
                f"SOLVER.STEPS {tuple(steps)}: must rise and end before SOLVER.MAX_ITER {solver.MAX_ITER} "
                f'({solver.UNIT}); set SOLVER.STEPS "()" for a constant rate'
            )
    precision_of(cfg)


def precision_of(cfg: CfgNode) -> str:
    """SOLVER.PRECISION, or fp16 where only SOLVER.AMP.ENABLED, detectron2's key, asks for mixed precision."""
    precision = cfg.SOLVER.PRECISION
    if precision not in PRECISIONS:
        raise UserError(f"SOLVER.PRECISION {precision!r}: choose from {', '.join(PRECISIONS)}")
    return "fp16" if cfg.SOLVER.AMP.ENABLED and precision == "fp32" else precision
