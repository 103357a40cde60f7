"""Keys that this package adds to detectron2's configuration; everything else is stock."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_resnext_config(cfg: CfgNode) -> None:
    """Add this package's keys, each with its default, to a detectron2 config. Safe to call twice."""
    # A user's own COCO-format sets: a list of [name, json_file, image_root]; the names go into DATASETS.TRAIN and TEST.
    cfg.DATASETS.setdefault("REGISTER", [])
    # Added to the variance in every batch norm. It belongs to the weights; 1e-5 is PyTorch's and detectron2's.
    cfg.MODEL.RESNETS.setdefault("NORM_EPS", 1e-5)
