"""MODEL.WEIGHTS into a classifier: every key accounted for, and the config held against what the file says."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode

from ..annotations.classes import match_classes
from ..errors import UserError
from ..resnext import Classifier
from ..variants import Variant, parse_name
from ..weights import Checkpoint, Metadata, check_metadata, load_strictly
from ..weights.class_rows import rows_by_name
from ..weights.loading import part_of
from ..weights.metadata import on_255

logger = logging.getLogger(__name__)

CONFIG_KEYS: dict[str, str] = {
    "name": "MODEL.NAME",
    "form": "MODEL.FORM",
    "residual": "MODEL.RESIDUAL",
    "stem_out_channels": "MODEL.STEM_OUT_CHANNELS",
    "res2_out_channels": "MODEL.RES2_OUT_CHANNELS",
    "stride_in_1x1": "MODEL.STRIDE_IN_1X1",
    "mean": "INPUT.MEAN",
    "std": "INPUT.STD",
    "norm_eps": "",
    "channel_order": "",
}
"""The config keys to compare with :func:`_in_config_terms`; "" where pretraining knows one value only."""


def metadata(cfg: CfgNode, model: Classifier, classes: Sequence[str]) -> Metadata:
    """What a user of the weights must know, in the words of :mod:`resnext_det.weights.metadata`."""
    variant = parse_name(cfg.MODEL.NAME)
    return {
        "depth": variant.depth,
        "cardinality": variant.cardinality,
        "width": variant.width,
        "cifar": variant.cifar,
        "form": cfg.MODEL.FORM,
        "residual": cfg.MODEL.RESIDUAL,
        "stem_out_channels": cfg.MODEL.STEM_OUT_CHANNELS,
        "res2_out_channels": cfg.MODEL.RES2_OUT_CHANNELS,
        "stride_in_1x1": cfg.MODEL.STRIDE_IN_1X1,
        "kind": variant.kind,
        "norm_eps": next(module.eps for module in model.modules() if hasattr(module, "eps")),
        "channel_order": "RGB",
        "pixel_mean": on_255(cfg.INPUT.MEAN),
        "pixel_std": on_255(cfg.INPUT.STD),
        "input_size": cfg.INPUT.CROP_SIZE,
        "class_names": list(classes),
    }


def check_against_config(
    own: Mapping[str, Any], found: Mapping[str, Any], where: str, classes: Sequence[str] = ()
) -> None:
    """Compare what a file says of itself with ``own``, the :func:`metadata` of this run.

    Args:
        classes: of the data; where they are given, the file's are to be the same, in the same order.

    Raises:
        UserError: they contradict each other; the message holds the settings that fix it.
    """
    check_metadata(_in_config_terms(found), _in_config_terms(own), where, CONFIG_KEYS)
    theirs = _classes(found)
    if classes and theirs and theirs != list(classes):
        match_classes(theirs, classes, model=where, source="the training set")
        raise UserError(
            f"{where}: the training set has its classes in another order; without --resume, --init-from {where} "
            "matches them by name"
        )


def _classes(found: Mapping[str, Any]) -> list[str]:
    """Names as the data has them; published weights name their classes in words."""
    return [] if "source" in found else list(found.get("class_names") or ())


def load_initial_weights(
    model: Classifier,
    checkpoint: Checkpoint,
    own: Mapping[str, Any],
    *,
    allow_missing: Sequence[str] = (),
    new_head: bool | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Load a checkpoint strictly into ``model`` and log where each part went.

    Args:
        own: as :func:`check_against_config`.
        allow_missing: MODEL.ALLOW_MISSING.
        new_head: True: ``fc`` starts anew, also for the same classes; None: for other ones; False, to evaluate: never.
        classes: of the model; those that the file knows too get their rows of ``fc``, whatever their place.

    Raises:
        UserError: the checkpoint does not fit, or contradicts the config.
    """
    where = str(checkpoint)
    check_against_config(own, checkpoint.metadata, where)
    known = _classes(checkpoint.metadata)
    if new_head:
        allow_missing = (*allow_missing, "fc")
        checkpoint = replace(checkpoint, tensors={n: t for n, t in checkpoint.tensors.items() if part_of(n) != "fc"})
    elif classes and known and known != list(classes):
        matched = rows_by_name(model.state_dict(), checkpoint.tensors, classes, known)
        if matched is not None:
            logger.warning(f"{where}: {matched}")
            checkpoint = replace(checkpoint, tensors=matched.tensors)
    report = load_strictly(model, checkpoint, allow_missing=tuple(allow_missing))
    if "fc" in report.new and new_head is False:
        theirs = checkpoint.tensors.get("fc.bias", ())
        raise UserError(
            f"{where}: has {len(theirs)} classes and not the {model.fc.out_features} of this evaluation; "
            "set DATASETS.TRAIN to the classes it was trained on"
        )
    logger.info("%s: %s", where, report)


def _in_config_terms(found: Mapping[str, Any]) -> Metadata:
    """The network by its name, and the statistics on the config's scale, 0-1."""
    terms = {key: value for key, value in found.items() if key in CONFIG_KEYS}
    if {"depth", "cardinality", "width", "cifar"} <= found.keys():
        kind = found.get("kind", "plain")
        terms["name"] = Variant(found["depth"], found["cardinality"], found["width"], found["cifar"], kind).name
    for key in ("mean", "std"):
        if found.get(f"pixel_{key}") is not None:
            terms[key] = [float(f"{value / 255:.7g}") for value in found[f"pixel_{key}"]]
    return terms
