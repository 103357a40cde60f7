"""Configurations that could only fail, or mislead, after hours: refused or named before anything is built."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..coco_eval import SCORE_THRESHOLD
from ..errors import UserError

logger = logging.getLogger(__name__)

C4_HEADS = ("ResNeXtC4ROIHeads", "Res5ROIHeads")


def check_config(cfg: CfgNode, *, eval_only: bool, resume: bool = False) -> None:
    """Hold the keys of ``cfg`` against each other, in a process of the run; logs what is odd but works.

    Raises:
        UserError: names the key and the fix.
    """
    if not eval_only:
        _check_schedule(cfg)
    elif not cfg.MODEL.WEIGHTS and not resume:
        raise UserError("--eval-only needs weights: give MODEL.WEIGHTS FILE, or --resume for the newest of OUTPUT_DIR")
    _check_head(cfg)
    _check_anchors(cfg)
    if comm.is_main_process():
        _warn(cfg)


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    steps, end = list(solver.STEPS), solver.MAX_ITER
    if end < 1:
        raise UserError(f"SOLVER.MAX_ITER is {end}: give at least one iteration")
    if "Step" in solver.LR_SCHEDULER_NAME:
        late = [step for step in steps if step >= end]
        if late:
            raise UserError(
                f"SOLVER.STEPS {steps}: {late[0]} is not before SOLVER.MAX_ITER {end}, so the learning rate would never "
                "fall there; scale STEPS with MAX_ITER, or leave it out"
            )
        if steps != sorted(steps):
            raise UserError(f"SOLVER.STEPS {steps}: must rise")
    if solver.WARMUP_ITERS >= end:
        raise UserError(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}: not before SOLVER.MAX_ITER {end}; the training would end "
            "while the learning rate still rises"
        )
    processes = comm.get_world_size()
    if solver.IMS_PER_BATCH < 1 or solver.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}: {processes} processes cannot share it evenly; make it a "
            f"multiple of {processes}"
        )
    if solver.CHECKPOINT_PERIOD < 1:
        raise UserError(f"SOLVER.CHECKPOINT_PERIOD is {solver.CHECKPOINT_PERIOD}: give iterations, at least 1")


def _check_head(cfg: CfgNode) -> None:
    """C4 heads hold res5 and read res4; a pyramid reads several maps."""
    out = list(cfg.MODEL.RESNETS.OUT_FEATURES)
    pyramid = "fpn" in cfg.MODEL.BACKBONE.NAME
    wanted = list(cfg.MODEL.FPN.IN_FEATURES) if pyramid else _read_by_heads(cfg)
    missing = [name for name in wanted if name not in out]
    if missing:
        reader = "MODEL.FPN.IN_FEATURES" if pyramid else "the heads (MODEL.RPN.IN_FEATURES, MODEL.ROI_HEADS.IN_FEATURES)"
        raise UserError(
            f"MODEL.RESNETS.OUT_FEATURES {out}: lacks {', '.join(missing)}, which {reader} "
            f"read{'s' if pyramid else ''}; add it"
        )
    if cfg.MODEL.ROI_HEADS.NAME in C4_HEADS and _has_roi_heads(cfg):
        if pyramid:
            raise UserError(
                f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} on {cfg.MODEL.BACKBONE.NAME}: a C4 head reads res4, "
                "not a pyramid; set StandardROIHeads, or MODEL.BACKBONE.NAME build_resnext_backbone"
            )
        if "res5" in out:
            raise UserError(
                f"MODEL.RESNETS.OUT_FEATURES {out}: res5 belongs to the C4 head and would stand idle in the backbone; "
                "set [res4]"
            )


def _check_anchors(cfg: CfgNode) -> None:
    if not _has_rpn(cfg):
        return
    maps = len(cfg.MODEL.RPN.IN_FEATURES)
    for key in ("SIZES", "ASPECT_RATIOS"):
        levels = len(cfg.MODEL.ANCHOR_GENERATOR[key])
        if levels not in (1, maps):
            value = [list(level) for level in cfg.MODEL.ANCHOR_GENERATOR[key]]
            hint = "; these are a pyramid's (FPN)" if maps == 1 else ""
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} {value}: {levels} levels of anchors, and MODEL.RPN.IN_FEATURES "
                f"{list(cfg.MODEL.RPN.IN_FEATURES)} names {maps}{hint}; one level is [[32, 64, 128, 256, 512]]"
                if key == "SIZES"
                else f"MODEL.ANCHOR_GENERATOR.{key} {value}: {levels} levels, and MODEL.RPN.IN_FEATURES names {maps}; "
                "one level is [[0.5, 1.0, 2.0]]"
            )
    if maps == 1 and len(cfg.MODEL.ANCHOR_GENERATOR.SIZES[0]) == 1 and cfg.MODEL.ROI_HEADS.NAME in C4_HEADS:
        logger.warning("MODEL.ANCHOR_GENERATOR.SIZES has one size for the one map of C4; COCO's configs have five")


def _warn(cfg: CfgNode) -> None:
    threshold = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    if threshold > SCORE_THRESHOLD:
        logger.warning(
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST is %g: AP counts what it leaves out as missed; %g is usual in evaluation",
            threshold,
            SCORE_THRESHOLD,
        )
    norm = cfg.MODEL.RESNETS.NORM
    if norm == "SyncBN" and comm.get_world_size() == 1:
        logger.warning("MODEL.RESNETS.NORM SyncBN: one process, so it is plain batch norm (BN)")
    if norm in ("BN", "SyncBN") and cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size() < 2 and norm == "BN":
        logger.warning("MODEL.RESNETS.NORM BN on batches of one picture: its statistics will be poor; see FrozenBN")


def _has_rpn(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork" or (
        _has_roi_heads(cfg) and not cfg.MODEL.LOAD_PROPOSALS and cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN"
    )


def _has_roi_heads(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"


def _read_by_heads(cfg: CfgNode) -> list[str]:
    names = list(cfg.MODEL.RPN.IN_FEATURES) if _has_rpn(cfg) else []
    return names + (list(cfg.MODEL.ROI_HEADS.IN_FEATURES) if _has_roi_heads(cfg) else [])
