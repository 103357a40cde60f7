"""Every key of stock detectron2 is read by a run, or refused or named where it differs from its default."""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg
from recording import leaves, recorded_reads
from tiny import TinyRun

from resnext_det.commands import train
from resnext_det.detection.stock_keys import ROWS, check_stock_keys
from resnext_det.errors import UserError

LEVELS = [[8], [16], [32], [64], [128]]
PYRAMID = {
    "MODEL.BACKBONE.NAME": "build_resnext_fpn_backbone", "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": LEVELS, "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC": 1, "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "C4": {},
    "C4 of detectron2, cosine": {
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeads", "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"},
    "C4 with masks": {"MODEL.MASK_ON": True},
    "C4, all switches": {
        "INPUT.CROP.ENABLED": True, "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm", "TEST.PRECISE_BN.ENABLED": True, "TEST.PRECISE_BN.NUM_ITER": 1,
        "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD": 0.5,
        "TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": [64]},
    "pyramid with masks and keypoints": {
        **PYRAMID, "MODEL.MASK_ON": True, "MODEL.KEYPOINT_ON": True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [8],
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 2, "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8, "TEST.KEYPOINT_OKS_SIGMAS": [0.1, 0.1]},
    "cascade": {
        **PYRAMID, "MODEL.ROI_HEADS.NAME": "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True},
    "RetinaNet": {
        "MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.RETINANET.NUM_CLASSES": 2, "MODEL.RETINANET.NUM_CONVS": 1,
        "MODEL.BACKBONE.NAME": "build_retinanet_resnext_fpn_backbone", "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL.ANCHOR_GENERATOR.SIZES": LEVELS},
    "proposals": {"MODEL.META_ARCHITECTURE": "ProposalNetwork"},
}  # fmt: skip
NEVER_SHOWN = {  # read for a log or a check, whatever the config
    "MODEL.RETINANET.NUM_CLASSES", "SOLVER.GAMMA", "SOLVER.STEPS", "INPUT.MASK_FORMAT", "TEST.KEYPOINT_OKS_SIGMAS",
    "MODEL.KEYPOINT_ON", "MODEL.MASK_ON", "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", "DATALOADER.REPEAT_THRESHOLD",
}  # fmt: skip


@pytest.fixture
def labelled_run(tmp_path: Path) -> TinyRun:
    """Its objects have masks and two keypoints."""
    return TinyRun(tmp_path, masks=True, keypoints=2)


def idle_keys(cfg: CfgNode) -> set[str]:
    return {key for key in leaves(get_cfg()) for row in ROWS if re.fullmatch(row.keys, key) and row.idle(cfg)}


def value_of(cfg: CfgNode, key: str) -> Any:
    return reduce(getattr, key.split("."), cfg)


@pytest.mark.parametrize("name", RUNS)
def test_every_stock_key_is_read_or_in_the_table(labelled_run: TinyRun, name: str) -> None:
    pairs = [word for pair in RUNS[name].items() for word in pair]
    words = labelled_run.options("run", "SOLVER.MAX_ITER", 1, "TEST.REPORT", False, *pairs)
    with recorded_reads() as read:
        train.main(["--config-file", str(labelled_run.file), *words])
    idle = idle_keys(labelled_run.config("run", *pairs))
    unread = set(leaves(get_cfg())) - read
    assert not unread - idle, f"nothing reads them, and nobody says so: {sorted(unread - idle)}"
    assert not (idle & read) - NEVER_SHOWN, f"read, and called without effect: {sorted((idle & read) - NEVER_SHOWN)}"


def another(value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else [*(value or ()), 3]


@pytest.mark.parametrize("name", ["C4", "RetinaNet"])
def test_each_key_without_effect_is_refused_or_named(tmp_path: Path, name: str) -> None:
    base = TinyRun(tmp_path).config("run", *(word for pair in RUNS[name].items() for word in pair))
    rest = [key for key in leaves(get_cfg()) if key not in {"MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"}]
    for key in sorted(idle_keys(base).intersection(rest)):
        cfg = base.clone()
        cfg.defrost()
        section, _, last = key.rpartition(".")
        value = another(value_of(get_cfg(), key))
        reduce(getattr, filter(None, section.split(".")), cfg)[last] = value
        with pytest.raises(UserError, match=f"^{re.escape(f'{key} {value}')}: has no effect"):
            check_stock_keys(cfg, given=[key])
        try:
            assert f"{key} {value}" in "".join(check_stock_keys(cfg))
        except UserError as error:
            assert f"{key} {value}: has no effect here" in str(error)


def test_a_key_without_effect_on_the_command_line_ends_the_run(tmp_path: Path) -> None:
    tiny = TinyRun(tmp_path)
    words = ["--config-file", str(tiny.file), *tiny.options("run", "MODEL.ROI_BOX_HEAD.NUM_FC", 2)]
    with pytest.raises(UserError, match="MODEL.ROI_BOX_HEAD.NUM_FC 2: has no effect .*StandardROIHeads"):
        train.main(words)
    assert not (tmp_path / "run").exists()


STOCK = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  BACKBONE: {NAME: build_resnext_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 14, NUM_GROUPS: 2, WIDTH_PER_GROUP: 4, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 16, NORM: BN,
            OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 2}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, POOLER_RESOLUTION: 7, FC_DIM: 16}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 4, POOLER_RESOLUTION: 14}
INPUT: {MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 96}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.02, STEPS: [60, 80], MAX_ITER: 90}
VERSION: 2
"""


def test_a_yaml_of_stock_keys_alone_trains(tmp_path: Path) -> None:
    """Written as detectron2's Base-RCNN-FPN.yaml, with the keys of a mask head that it leaves off, and no device."""
    tiny = TinyRun(tmp_path)
    tiny.file.write_text(STOCK)
    assert set(leaves(CfgNode(CfgNode.load_yaml_with_base(str(tiny.file))))) <= set(leaves(get_cfg()))
    words = tiny.options("run", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", 0)
    train.main(["--config-file", str(tiny.file), *words, "TEST.REPORT", "False"])
    assert (tmp_path / "run" / "results.json").exists()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "as this config lacks MODEL.MASK_ON True: MODEL.ROI_MASK_HEAD.NUM_CONV 4" in log
