"""MODEL.WEIGHTS into a detector: every key accounted for, and the config held against what the file says of itself."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..errors import UserError
from ..weights import check_metadata, check_norm_statistics, load_strictly, read_checkpoint

logger = logging.getLogger(__name__)


def architecture(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint of this run says of itself: network, norm and picture conventions, class names."""
    keys = cfg.MODEL.RESNETS
    return {
        "depth": keys.DEPTH,
        "cardinality": keys.NUM_GROUPS,
        "width": keys.WIDTH_PER_GROUP,
        "stride_in_1x1": keys.STRIDE_IN_1X1,
        "norm_eps": keys.NORM_EPS,
        "channel_order": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "class_names": list(MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes", [])),
    }


def load_initial_weights(cfg: CfgNode, model: nn.Module, *, allow_new_heads: bool = True) -> None:
    """Load MODEL.WEIGHTS into ``model``, strictly, and log what went where.

    Args:
        cfg: MODEL.WEIGHTS is a file, ``torchvision://NAME`` or ``timm://NAME``; empty leaves random weights.
        allow_new_heads: heads may start anew (training from a classifier); False to evaluate.

    Raises:
        UserError: the file cannot be read, does not fit, or contradicts the config; frozen batch norms over random
            weights.
    """
    if cfg.MODEL.WEIGHTS:
        checkpoint = read_checkpoint(cfg.MODEL.WEIGHTS)
        expected = {key: value for key, value in architecture(cfg).items() if key != "class_names"}
        check_metadata(checkpoint.metadata, expected, cfg.MODEL.WEIGHTS)
        report = load_strictly(model, checkpoint)
        if report.new and not allow_new_heads:
            raise UserError(
                f"{cfg.MODEL.WEIGHTS}: has no weights for {', '.join(report.new)}; give a detector of this config"
            )
        logger.info("%s: %s", cfg.MODEL.WEIGHTS, report)
    else:
        logger.warning("MODEL.WEIGHTS is empty: the network starts from random weights")
    check_norm_statistics(model, cfg.MODEL.WEIGHTS or "MODEL.WEIGHTS is empty")
