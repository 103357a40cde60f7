"""Configurations that could only fail, or mislead, after hours: refused or named before anything is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from importlib.util import find_spec

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.utils import comm

from ..annotations.evaluation import SCORE_THRESHOLD
from ..engine.tracking import check_tracker
from ..errors import UserError
from ..files import shown
from .channels import STEMS, rgb_only
from .data.augmentation import check_augmentation
from .data.loaders import check_sampler
from .solver import check_solver
from .stock_keys import C4_HEADS, check_stock_keys, has_roi_heads, has_rpn


def check_config(cfg: CfgNode, *, eval_only: bool, resume: bool = False, given: Sequence[str] = ()) -> list[str]:
    """Hold the keys of ``cfg`` against each other, in a process of the run.

    Args:
        given: keys that the user has named for this run, as :func:`.stock_keys.check_stock_keys` takes them.

    Returns:
        What is odd but works, for the log, which is opened once nothing is refused.

    Raises:
        UserError: names the key and the fix.
    """
    if not eval_only:
        _typed("SOLVER", check_solver, cfg)
    elif not cfg.MODEL.WEIGHTS and not resume:
        raise UserError("--eval-only needs weights: give MODEL.WEIGHTS FILE, or --resume for the newest of OUTPUT_DIR")
    check_tracker(cfg.TRACKER)
    idle = check_stock_keys(cfg, given)
    _check_precise_bn(cfg)
    check_sampler(cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD)
    _typed("INPUT.CROP, INPUT.SCALE_JITTER, INPUT.COLOR", check_augmentation, cfg)
    _check_channels(cfg)
    _typed("MODEL.ROI_HEADS.CLASS_WEIGHTS", _check_class_weights, cfg)
    _typed("INPUT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD", _check_values, cfg)
    _typed("MODEL.RESNETS, MODEL.FPN", _check_head, cfg)
    _typed("MODEL.ANCHOR_GENERATOR, MODEL.RPN", _check_anchors, cfg)
    if cfg.MODEL.RESNETS.NORM == "SyncBN" and comm.get_world_size() > 1 and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise UserError("MODEL.RESNETS.NORM SyncBN: torch has it for GPUs only; set naiveSyncBN, detectron2's own")
    return [*idle, *_oddities(cfg)]


def _check_precise_bn(cfg: CfgNode) -> None:
    if cfg.TEST.PRECISE_BN.ENABLED:
        if cfg.TEST.PRECISE_BN.NUM_ITER < 1:
            raise UserError(f"TEST.PRECISE_BN.NUM_ITER {cfg.TEST.PRECISE_BN.NUM_ITER}: must be at least 1")
        if cfg.SOLVER.EMA_DECAY:
            raise UserError("TEST.PRECISE_BN.ENABLED with SOLVER.EMA_DECAY: choose one of them")


def _typed(keys: str, check: Callable[[CfgNode], None], cfg: CfgNode) -> None:
    try:
        check(cfg)
    except TypeError as error:  # lists may hold anything
        raise UserError(f"{keys}: a list holds values of the wrong type ({error}); see the defaults") from error


def _check_values(cfg: CfgNode) -> None:
    """Impossible numbers, and names unknown to detectron2."""
    smallest = {
        "INPUT.CHANNELS": 1,
        "INPUT.MIN_SIZE_TEST": 0,  # 0 keeps the size
        "INPUT.MAX_SIZE_TRAIN": 1,
        "INPUT.MAX_SIZE_TEST": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "MODEL.RESNETS.NUM_GROUPS": 1,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 1,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 1,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 1,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 1,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 1,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 1,
    }
    for key, least in smallest.items():
        value = reduce(getattr, key.split("."), cfg)
        if value < least:
            raise UserError(f"{key} {value}: must be at least {least}")
    choices = {
        "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical"),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
        "INPUT.STEM": STEMS,
    }
    for key, known in choices.items():
        value = reduce(getattr, key.split("."), cfg)
        if value not in known:
            raise UserError(f"{key} {value!r}: choose from {', '.join(known)}")
    if cfg.INPUT.CROP.ENABLED:
        _check_crop(cfg.INPUT.CROP.TYPE, list(cfg.INPUT.CROP.SIZE))
    cuts = "CROP.ENABLED" if cfg.INPUT.CROP.ENABLED else "SCALE_JITTER" if cfg.INPUT.SCALE_JITTER.SIZE else ""
    if cuts and cfg.MODEL.MASK_ON and not cfg.INPUT.COPY_PASTE and find_spec("shapely") is None:
        raise UserError(f"INPUT.{cuts} with MODEL.MASK_ON: detectron2 cuts polygons with shapely; pip install it")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if not sizes or min(sizes) < 0:
        raise UserError(f"INPUT.MIN_SIZE_TRAIN {tuple(sizes)}: give at least one size, in pixels")
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    if len(mean) != len(std) or not std or not min(std) > 0:
        raise UserError(
            f"MODEL.PIXEL_MEAN {mean} and MODEL.PIXEL_STD {std}: give one number of each for every channel, STD above 0"
        )
    try:
        get_norm(cfg.MODEL.RESNETS.NORM, 32)
    except KeyError:
        raise UserError(
            f"MODEL.RESNETS.NORM {cfg.MODEL.RESNETS.NORM!r}: detectron2 has no such norm; FrozenBN, BN, SyncBN, GN are "
            "usual"
        ) from None


def _check_channels(cfg: CfgNode) -> None:
    if cfg.INPUT.CHANNELS == 3:
        return
    if cfg.DATASETS.BROKEN_IMAGES == "load":
        raise UserError("DATASETS.BROKEN_IMAGES load: not with INPUT.CHANNELS other than 3; set error or skip")
    if cfg.INPUT.COLOR.SATURATION:
        raise UserError("INPUT.COLOR.SATURATION: is of RGB images; set it to 0 with INPUT.CHANNELS other than 3")
    if cfg.TEST.TILE:
        rgb_only(cfg.INPUT.CHANNELS, "TEST.TILE")


def _check_class_weights(cfg: CfgNode) -> None:
    weights, classes = list(cfg.MODEL.ROI_HEADS.CLASS_WEIGHTS), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if not weights:
        return
    if cfg.MODEL.ROI_HEADS.NAME != "ResNeXtC4ROIHeads":
        raise UserError(f"MODEL.ROI_HEADS.CLASS_WEIGHTS: {cfg.MODEL.ROI_HEADS.NAME} knows none; leave it out")
    if len(weights) != classes or not all(0 < weight < math.inf for weight in weights):
        raise UserError(
            f"MODEL.ROI_HEADS.CLASS_WEIGHTS {weights}: give {classes} numbers above 0, one for each class (the check "
            "lists them in their order)"
        )


def _check_crop(kind: str, size: list) -> None:
    kinds = ("relative", "relative_range", "absolute", "absolute_range")
    if kind not in kinds:
        raise UserError(f"INPUT.CROP.TYPE {kind!r}: choose from {', '.join(kinds)}")
    absolute = kind.startswith("absolute")
    if len(size) != 2 or not all(value >= 1 and value == int(value) if absolute else 0 < value <= 1 for value in size):
        wanted = "whole numbers of pixels" if absolute else "shares of the image, in (0, 1]"
        raise UserError(f"INPUT.CROP.SIZE {size}: INPUT.CROP.TYPE {kind} takes two {wanted}")


def _check_head(cfg: CfgNode) -> None:
    """C4 heads hold res5 and read res4; a pyramid reads several maps."""
    if cfg.MODEL.META_ARCHITECTURE in ("PanopticFPN", "SemanticSegmentor"):
        raise UserError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: learns from maps of stuff, which are not read "
            "here; detectron2's own tools train it on this backbone"
        )
    out = list(cfg.MODEL.RESNETS.OUT_FEATURES)
    pyramid = "fpn" in cfg.MODEL.BACKBONE.NAME
    wanted = list(cfg.MODEL.FPN.IN_FEATURES) if pyramid else _read_by_heads(cfg)
    missing = [name for name in wanted if name not in out]
    if missing:
        reader = "MODEL.FPN.IN_FEATURES" if pyramid else "the heads (their IN_FEATURES)"
        raise UserError(
            f"MODEL.RESNETS.OUT_FEATURES {shown(out)}: lacks {', '.join(missing)}, which {reader} "
            f"read{'s' if pyramid else ''}; add it"
        )
    if cfg.MODEL.ROI_HEADS.NAME in C4_HEADS and has_roi_heads(cfg):
        if cfg.MODEL.KEYPOINT_ON:
            raise UserError(
                f"MODEL.KEYPOINT_ON True: {cfg.MODEL.ROI_HEADS.NAME} has no keypoints; set MODEL.ROI_HEADS.NAME "
                "StandardROIHeads on a pyramid, as detectron2's Base-Keypoint-RCNN-FPN.yaml"
            )
        if pyramid:
            raise UserError(
                f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} on {cfg.MODEL.BACKBONE.NAME}: a C4 head reads res4, "
                "not a pyramid; set StandardROIHeads, or MODEL.BACKBONE.NAME build_resnext_backbone"
            )
        if "res5" in out:
            raise UserError(
                f"MODEL.RESNETS.OUT_FEATURES {shown(out)}: res5 belongs to the C4 head and would stand idle in the "
                "backbone; set [res4]"
            )


def _check_anchors(cfg: CfgNode) -> None:
    if not has_rpn(cfg):
        return
    maps = list(cfg.MODEL.RPN.IN_FEATURES)
    for key, example in (("SIZES", "[[32, 64, 128, 256, 512]]"), ("ASPECT_RATIOS", "[[0.5, 1.0, 2.0]]")):
        value = cfg.MODEL.ANCHOR_GENERATOR[key]
        flat = not any(isinstance(level, list | tuple) for level in value)  # one level, which detectron2 takes as well
        levels = [list(value)] if flat else [list(level) for level in value]
        if not all(level and min(level) > 0 for level in levels):
            raise UserError(f"MODEL.ANCHOR_GENERATOR.{key} {levels}: give numbers above 0, such as {example}")
        if len(levels) not in (1, len(maps)):
            pyramid = ", as a feature pyramid (FPN) has" if len(maps) == 1 else ""
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} {levels}: {len(levels)} levels{pyramid}, and MODEL.RPN.IN_FEATURES is "
                f"{maps}; give one level for each, or one for all, such as {example}"
            )


def _oddities(cfg: CfgNode) -> Iterator[str]:
    threshold = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    if threshold > SCORE_THRESHOLD:
        yield (
            f"MODEL.ROI_HEADS.SCORE_THRESH_TEST is {threshold:g}: AP counts as missed what it leaves out; "
            f"{SCORE_THRESHOLD:g} is usual"
        )
    solver = cfg.SOLVER
    if solver.UNIT == "iterations" and solver.WARMUP_ITERS >= solver.MAX_ITER:
        yield (
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is not before SOLVER.MAX_ITER {solver.MAX_ITER}: the learning "
            "rate never reaches BASE_LR"
        )
    norm = cfg.MODEL.RESNETS.NORM
    if norm == "SyncBN" and comm.get_world_size() == 1:
        yield "MODEL.RESNETS.NORM SyncBN: one process, so it is plain batch norm (BN)"
    if norm == "BN" and cfg.SOLVER.IMS_PER_BATCH // (comm.get_world_size() * cfg.SOLVER.ACCUMULATE) == 1:
        yield "MODEL.RESNETS.NORM BN on batches of one image: poor statistics; FrozenBN is usual"


def _read_by_heads(cfg: CfgNode) -> list[str]:
    names = list(cfg.MODEL.RPN.IN_FEATURES) if has_rpn(cfg) else []
    return names + (list(cfg.MODEL.ROI_HEADS.IN_FEATURES) if has_roi_heads(cfg) else [])
