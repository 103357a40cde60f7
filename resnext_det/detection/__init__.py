"""ResNeXt in detectron2: importing this package registers the backbones and the C4 head."""

from .backbone import (
    ResNeXtBackbone,
    build_resnext_backbone,
    build_resnext_fpn_backbone,
    build_retinanet_resnext_fpn_backbone,
)
from .c4_head import ResNeXtC4ROIHeads
from .config import add_resnext_config
from .optimize import optimize_for_inference

__all__ = [
    "ResNeXtBackbone",
    "ResNeXtC4ROIHeads",
    "add_resnext_config",
    "build_resnext_backbone",
    "build_resnext_fpn_backbone",
    "build_retinanet_resnext_fpn_backbone",
    "optimize_for_inference",
]
