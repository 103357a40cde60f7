"""MODEL.WEIGHTS into a detector: every key accounted for, and the config held against what the file says of itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import reduce
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from ..errors import UserError
from ..weights import Metadata, check_metadata, check_norm_statistics, load_strictly, preset, read_checkpoint
from ..weights.loading import part_of
from .class_count import class_count_from_config

logger = logging.getLogger(__name__)


PRESETS = ("none", "auto")


def architecture(cfg: CfgNode) -> Metadata:
    """What a checkpoint of this run says of itself: network, norm and image conventions, class names."""
    keys = cfg.MODEL.RESNETS
    sets = [MetadataCatalog.get(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    return {
        "depth": keys.DEPTH,
        "cardinality": keys.NUM_GROUPS,
        "width": keys.WIDTH_PER_GROUP,
        "stem_out_channels": keys.STEM_OUT_CHANNELS,
        "res2_out_channels": keys.RES2_OUT_CHANNELS,
        "stride_in_1x1": keys.STRIDE_IN_1X1,
        "kind": cfg.MODEL.RESNEXT.KIND,
        "norm_eps": keys.NORM_EPS,
        "channel_order": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "class_names": list(sets[0].get("thing_classes", [])) if sets else [],
    }


def check_against_config(cfg: CfgNode, found: Mapping[str, Any], where: str) -> None:
    """Compare what a file says of itself with the config.

    Raises:
        UserError: they contradict each other; the message holds the settings that fix it.
    """
    check_metadata(found, architecture(cfg), where)


def apply_preset(cfg: CfgNode, *, trust_pickle: bool = False) -> CfgNode:
    """The config with INPUT.PRESET applied, before the model is built.

    ``auto`` takes INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD, MODEL.RESNETS.STRIDE_IN_1X1 and
    MODEL.RESNETS.NORM_EPS from what MODEL.WEIGHTS says of itself, and logs each. The result has ``none``: it means the
    same without the weights at hand.

    Raises:
        UserError: another value of INPUT.PRESET; no weights, or weights that do not say all of the five.
    """
    if cfg.INPUT.PRESET not in PRESETS:
        raise UserError(f"INPUT.PRESET {cfg.INPUT.PRESET!r}: choose from {', '.join(PRESETS)}")
    if cfg.INPUT.PRESET == "none":
        return cfg
    if not cfg.MODEL.WEIGHTS:
        raise UserError("INPUT.PRESET auto asks MODEL.WEIGHTS, which is empty: name weights, or remove INPUT.PRESET")
    metadata = read_checkpoint(cfg.MODEL.WEIGHTS, trust_pickle=trust_pickle, branch=cfg.MODEL.WEIGHTS_BRANCH).metadata
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    for key, value in preset(metadata, cfg.MODEL.WEIGHTS).items():
        section, name = key.rsplit(".", 1)
        node = reduce(getattr, section.split("."), cfg)
        logger.info("INPUT.PRESET auto: %s %s (was %s)", key, value, node[name])
        node[name] = value
    cfg.INPUT.PRESET = "none"
    if frozen:
        cfg.freeze()
    return cfg


def load_initial_weights(
    cfg: CfgNode, model: nn.Module, *, allow_new_heads: bool = True, trust_pickle: bool = False
) -> Metadata:
    """Load MODEL.WEIGHTS strictly into ``model`` and log where each part went.

    Args:
        cfg: MODEL.WEIGHTS is a file, ``torchvision://NAME`` or ``timm://NAME``; empty leaves random weights.
        allow_new_heads: heads may start anew (training from a classifier); False to evaluate: then only parts named by
            MODEL.ALLOW_MISSING may.
        trust_pickle: also open files that may run code.

    Returns:
        What the file says of itself; empty without one.

    Raises:
        UserError: the file cannot be read, does not fit, or contradicts the config; frozen batch norms over random
            weights.
    """
    metadata: Metadata = {}
    if cfg.MODEL.WEIGHTS:
        checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS, trust_pickle=trust_pickle, branch=cfg.MODEL.WEIGHTS_BRANCH)
        check_against_config(cfg, checkpoint.metadata, cfg.MODEL.WEIGHTS)
        report = load_strictly(model, checkpoint, allow_missing=cfg.MODEL.ALLOW_MISSING)
        allowed = {*cfg.MODEL.ALLOW_MISSING, *(part_of(f"{entry}.") for entry in cfg.MODEL.ALLOW_MISSING)}
        new = [part for part in report.new if part not in allowed]
        if new and not allow_new_heads:
            _check_number_of_classes(cfg, checkpoint.tensors)
            raise UserError(f"{cfg.MODEL.WEIGHTS}: has no weights for {', '.join(new)}; give a detector of this config")
        logger.info("%s: %s", checkpoint, report)
        metadata = checkpoint.metadata
    else:
        logger.warning("MODEL.WEIGHTS is empty: the network starts from random weights")
    check_norm_statistics(model, cfg.MODEL.WEIGHTS or "MODEL.WEIGHTS is empty")
    return metadata


def _check_number_of_classes(cfg: CfgNode, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError where a trained Faster R-CNN has another number of classes than the config."""
    rows = tensors.get("roi_heads.box_predictor.cls_score.weight")
    count = class_count_from_config(cfg)
    if rows is not None and count is not None and len(rows) != count.number + 1:
        raise UserError(
            f"{cfg.MODEL.WEIGHTS}: a detector of {len(rows) - 1} classes, and {count.key} is {count.number}; set "
            f"{count.key} {len(rows) - 1}, or give the config of its training, --config-file OUTPUT_DIR/config.yaml"
        )
