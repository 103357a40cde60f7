"""MODEL.WEIGHTS into a detector: every key accounted for, and the config held against what the file says of itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from ..annotations.check import ClassCount
from ..annotations.classes import match_classes
from ..annotations.dataset import Dataset
from ..errors import UserError, listed
from ..weights import (
    Checkpoint,
    Metadata,
    Reader,
    check_metadata,
    check_norm_statistics,
    load_strictly,
    preset,
    read_checkpoint,
)
from ..weights.class_rows import rows_by_name
from ..weights.loading import part_of
from .channels import adapted_stem
from .class_count import class_count_from_config

logger = logging.getLogger(__name__)


PRESETS = ("none", "auto")


def architecture(cfg: CfgNode) -> Metadata:
    """What a checkpoint of this run says of itself: network, norm and image conventions, class names."""
    keys = cfg.MODEL.RESNETS
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
        "class_names": class_names_of(cfg),
    }


def class_names_of(cfg: CfgNode, sets: Mapping[str, Dataset] | None = None) -> list[str]:
    """The names of the classes in the order of the data: of ``sets``, or as the first set was registered."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name in (sets or {}):
            return list(sets[name].class_names)
        return list(MetadataCatalog.get(name).get("thing_classes", []))
    return []


def detector_names(found: Mapping[str, Any]) -> list[str]:
    """The class names in a detector's checkpoint; files of classifiers name what the classifier tells apart."""
    return [] if "source" in found else list(found.get("class_names") or ())


def check_against_config(
    cfg: CfgNode, found: Mapping[str, Any], where: str, class_names: Sequence[str] | None = None
) -> None:
    """Compare what a file says of itself with the config.

    Args:
        class_names: of the data; where they are given, the file's are to be the same, in the same order.

    Raises:
        UserError: they contradict each other; the message holds the settings that fix it.
    """
    check_metadata(found, architecture(cfg), where)
    theirs = detector_names(found)
    if class_names and theirs and theirs != list(class_names) and class_count_from_config(cfg) is not None:
        match_classes(theirs, class_names, model=where, source="the training set")
        raise UserError(
            f"{where}: the training set has its classes in another order, {listed(class_names, 5)}; only a set that is "
            "checked is put into the checkpoint's: set DATASETS.CHECK to auto"
        )


def weights_of(cfg: CfgNode, read: Reader = read_checkpoint) -> Checkpoint:
    """MODEL.WEIGHTS, as far as MODEL.WEIGHTS_BRANCH takes it."""
    return read(cfg.MODEL.WEIGHTS, branch=cfg.MODEL.WEIGHTS_BRANCH)


def apply_preset(cfg: CfgNode, read: Reader = read_checkpoint) -> CfgNode:
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
    metadata = weights_of(cfg, read).metadata
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
    cfg: CfgNode,
    model: nn.Module,
    *,
    allow_new_heads: bool = True,
    read: Reader = read_checkpoint,
    class_names: Sequence[str] = (),
) -> Metadata:
    """Load MODEL.WEIGHTS strictly into ``model`` and log where each part went.

    Args:
        cfg: MODEL.WEIGHTS is a file, ``torchvision://NAME`` or ``timm://NAME``; empty leaves random weights.
        allow_new_heads: heads may start anew (training from a classifier); False to evaluate: then only parts named by
            MODEL.ALLOW_MISSING may.
        read: reads it.
        class_names: of the model's classes; those that the file knows too get their rows of the last layers, whatever
            their place and number.

    Returns:
        What the file says of itself; empty without one.

    Raises:
        UserError: the file cannot be read, does not fit, or contradicts the config; frozen batch norms over random
            weights.
    """
    metadata: Metadata = {}
    if cfg.MODEL.WEIGHTS:
        checkpoint = weights_of(cfg, read)
        if "CHANNELS" in cfg.INPUT:
            checkpoint = adapted_stem(checkpoint, cfg.INPUT.CHANNELS, cfg.INPUT.STEM)
        check_against_config(cfg, checkpoint.metadata, cfg.MODEL.WEIGHTS)
        if class_names and class_count_from_config(cfg) is not None:
            checkpoint = _by_class_name(cfg.MODEL.WEIGHTS, cfg.MODEL.WEIGHTS_CLASSES, model, checkpoint, class_names)
        report = load_strictly(model, checkpoint, allow_missing=cfg.MODEL.ALLOW_MISSING)
        allowed = {*cfg.MODEL.ALLOW_MISSING, *(part_of(f"{entry}.") for entry in cfg.MODEL.ALLOW_MISSING)}
        new = [part for part in report.new if part not in allowed]
        if new and not allow_new_heads:
            _check_number_of_classes(cfg.MODEL.WEIGHTS, class_count_from_config(cfg), checkpoint.tensors)
            raise UserError(f"{cfg.MODEL.WEIGHTS}: has no weights for {', '.join(new)}; give a detector of this config")
        logger.info("%s: %s", checkpoint, report)
        metadata = checkpoint.metadata
    else:
        logger.warning("MODEL.WEIGHTS is empty: the network starts from random weights")
    check_norm_statistics(model, cfg.MODEL.WEIGHTS or "MODEL.WEIGHTS is empty")
    return metadata


def _by_class_name(
    where: str, given: Sequence[str], model: nn.Module, checkpoint: Checkpoint, names: Sequence[str]
) -> Checkpoint:
    """The weights with the rows of their last layers where ``names`` has these classes; what changed is logged."""
    known, own = list(given) or detector_names(checkpoint.metadata), model.state_dict()
    matched = rows_by_name(own, checkpoint.tensors, names, known) if known else None
    if matched is None:
        if given:
            raise UserError(
                f"MODEL.WEIGHTS_CLASSES: {len(given)} names, and {where} has no predictor of so many classes"
            )
        if rows_by_name(own, checkpoint.tensors, names, names) is not None:
            logger.warning(
                f"{where} does not say its class names: taken to be those of the data, {listed(names, 5)}; "
                "MODEL.WEIGHTS_CLASSES tells others"
            )
        return checkpoint
    if known != list(names):
        renamed = "; for classes that were only renamed, MODEL.WEIGHTS_CLASSES lists the file's by their new names"
        logger.warning(f"{where}: {matched}{renamed if matched.new and matched.dropped else ''}")
    return replace(checkpoint, tensors=matched.tensors)


def _check_number_of_classes(where: str, count: ClassCount | None, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError where a trained Faster R-CNN has another number of classes than the config."""
    rows = tensors.get("roi_heads.box_predictor.cls_score.weight")
    if rows is not None and count is not None and len(rows) != count.number + 1:
        raise UserError(
            f"{where}: a detector of {len(rows) - 1} classes, and {count.key} is {count.number}; set "
            f"{count.key} {len(rows) - 1}, or give the config of its training, --config-file OUTPUT_DIR/config.yaml"
        )
