"""Every detection config is read by the real loader and builds; every key of ours is read by a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from common import ROOT
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from recording import leaves, recorded_reads
from tiny import TinyRun

from resnext_det import add_resnext_config
from resnext_det.classification.config import get_config
from resnext_det.commands import pretrain, train
from resnext_det.detection.backbone import ResNeXtBackbone
from resnext_det.detection.config import setup
from resnext_det.makers.synthetic import draw_classes
from resnext_det.variants import Variant, blocks_per_stage

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs" / "detection").rglob("*.yaml"))


def named_network(path: str) -> Variant | None:
    """The network that a file's name promises, such as ``X_101_32x4d_C4_1x``."""
    match = re.search(r"(R|X)_(\d+)(?:_(\d+)x(\d+)d)?(?:_|\.)", Path(path).name)
    if match is None:
        return None
    return Variant(int(match[2]), int(match[3] or 1), int(match[4] or 64))


def bases(path: str) -> set[str]:
    """The files that ``_BASE_`` of a config names."""
    named = yaml.safe_load((ROOT / path).read_text("utf-8")).get("_BASE_", [])
    named = [named] if isinstance(named, str) else named
    return {os.path.relpath((ROOT / path).parent / name, ROOT) for name in named}


# A file that only others build upon (a schedule, a protocol) is tested with them.
BASES = set().union(*map(bases, CONFIGS))
LEAVES = [path for path in CONFIGS if path not in BASES or named_network(path) is not None]


def test_there_are_configs() -> None:
    assert len(LEAVES) > 20 and BASES < set(CONFIGS)


@pytest.mark.parametrize("path", LEAVES)
def test_config_builds_the_network_it_names(path: str) -> None:
    cfg = setup(str(ROOT / path), ["MODEL.DEVICE", "cpu"]).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"  # shapes without the time and memory of real weights
    with torch.device("meta"):
        model = build_model(cfg)
    variant = named_network(path)
    if variant is not None:
        keys = cfg.MODEL.RESNETS
        built = Variant(keys.DEPTH, keys.NUM_GROUPS, keys.WIDTH_PER_GROUP)
        assert built == variant
    assert isinstance(model.backbone, ResNeXtBackbone)
    assert len(model.backbone.res4) == blocks_per_stage(cfg.MODEL.RESNETS.DEPTH)[2]
    assert cfg.OUTPUT_DIR.startswith("output/"), "the default folder is everybody's"


@pytest.mark.parametrize("network", ["R_50", "R_101", "X_50_32x4d", "X_101_32x4d"])
def test_the_two_networks_of_table_8(network: str) -> None:
    """The appendix' recipe and py-faster-rcnn's sizes, written down once more."""
    rpn, fast = (setup(str(ROOT / f"configs/detection/paper/{step}-{network}.yaml"), []) for step in ("RPN", "Fast"))
    assert rpn.MODEL.PROPOSAL_GENERATOR.MIN_SIZE == 16 and rpn.MODEL.RPN.BATCH_SIZE_PER_IMAGE == 256
    assert fast.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 64 and fast.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST == 300
    assert [(cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) for cfg in (rpn, fast)] == [(16, 0.02), (8, 0.005)]
    for cfg in (rpn, fast):
        assert (cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS)) == (180_000, (120_000,))
        assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.MODEL.RESNETS.NORM) == (600, 1000, "FrozenBN")


def test_no_two_configs_write_into_one_folder() -> None:
    folders = [setup(str(ROOT / path), ["MODEL.DEVICE", "cpu"]).OUTPUT_DIR for path in LEAVES]
    assert len(set(folders)) == len(folders)


def test_every_key_of_ours_is_read_in_a_run(tmp_path: Path) -> None:
    """A short training of a detector, and an evaluation of its weights."""
    cfg = get_cfg()
    stock = set(leaves(cfg))
    add_resnext_config(cfg)
    ours = set(leaves(cfg)) - stock
    assert "MODEL.RESNEXT.FAST_C4" in ours and len(ours) > 20
    tiny = TinyRun(tmp_path)
    words = ["--config-file", str(tiny.file), *tiny.options("run", "SOLVER.MAX_ITER", 2)]
    with recorded_reads() as read:
        train.main(words)
        train.main(["--eval-only", *words, "TEST.TILE", "60", "MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth")])
    ours -= {"TEST.VOC_ROUNDING"}  # read where a test set is PASCAL VOC's
    ours -= {"MODEL.WEIGHTS_CLASSES"}  # read where a training starts from weights
    assert not ours - read, f"keys that nothing reads: {sorted(ours - read)}"


def test_every_key_of_pretraining_is_read_in_a_run(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw_classes(tmp_path / split, 2)
    values = {
        "MODEL.NAME": "resnext14_2x2d", "MODEL.STEM_OUT_CHANNELS": 8, "MODEL.RES2_OUT_CHANNELS": 16,
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": tmp_path / "train", "DATASETS.TEST": tmp_path / "val", "DATALOADER.NUM_WORKERS": 0,
        "INPUT.CROP_SIZE": 32, "TEST.SHORT_SIDE": 32, "TEST.CROP_SIZE": 32, "SOLVER.EPOCHS": 2, "SOLVER.STEPS": "(1,)",
        "SOLVER.IMS_PER_BATCH": 2, "OUTPUT_DIR": tmp_path / "run",
    }  # fmt: skip
    (tmp_path / "empty.yaml").write_text("VERSION: 2\n")
    words = ["--config-file", str(tmp_path / "empty.yaml"), *(str(v) for pair in values.items() for v in pair)]
    evaluation = ["MODEL.WEIGHTS", str(tmp_path / "run/model_final.pth"), "TEST.DTYPE", "fp32", "TEST.KNN", "1"]
    with recorded_reads() as read:
        pretrain.main(words)
        pretrain.main(["--eval-only", *words, *evaluation])
    # load_config's own; the CIFAR augmentation's; that of a file which holds several branches of weights
    unread = set(leaves(get_config())) - read - {"VERSION", "INPUT.PADDING", "MODEL.WEIGHTS_BRANCH"}
    assert not unread, f"keys that nothing reads: {sorted(unread)}"


def test_the_recorder_sees_reads_and_nothing_else() -> None:
    cfg = get_config()
    with recorded_reads() as read:
        solver = cfg.SOLVER
        assert solver["GAMMA"] and cfg.clone().TEST.CROP_SIZE and hasattr(cfg.MODEL, "NAME")
        cfg.dump()
        cfg.merge_from_list(["SEED", "3"])
    assert read == {"SOLVER.GAMMA", "TEST.CROP_SIZE", "MODEL.NAME"}
