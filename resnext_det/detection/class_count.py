"""How many classes of things the model has, and the key that says so: it depends on MODEL.META_ARCHITECTURE."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..annotations.check import ClassCount

WITHOUT_CLASSES = ("ProposalNetwork", "SemanticSegmentor")


def class_count_from_config(cfg: CfgNode) -> ClassCount | None:
    """MODEL.RETINANET.NUM_CLASSES for RetinaNet, and the like for every architecture with a node of its name.

    MODEL.ROI_HEADS.NUM_CLASSES for the others; None for those that tell no classes of things apart.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name in WITHOUT_CLASSES:
        return None
    for key, node in cfg.MODEL.items():
        if key.replace("_", "").lower() == name.lower() and "NUM_CLASSES" in node:
            return ClassCount(node.NUM_CLASSES, f"MODEL.{key}.NUM_CLASSES")
    return ClassCount(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
