"""Every detection config is read by the real loader and builds; every key of ours is read by something."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from common import ROOT
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from resnext_det import add_resnext_config
from resnext_det.detection.backbone import ResNeXtBackbone
from resnext_det.detection.config import setup
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


def test_no_two_configs_write_into_one_folder() -> None:
    folders = [setup(str(ROOT / path), ["MODEL.DEVICE", "cpu"]).OUTPUT_DIR for path in LEAVES]
    assert len(set(folders)) == len(folders)


def leaves(node: dict, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_key_of_ours_is_read() -> None:
    cfg = get_cfg()
    stock = set(leaves(cfg))
    add_resnext_config(cfg)
    ours = set(leaves(cfg)) - stock
    assert "MODEL.RESNEXT.FAST_C4" in ours
    package = ROOT / "resnext_det"
    text = "\n".join(file.read_text("utf-8") for file in package.rglob("*.py") if file.name != "config.py")
    unread = [key for key in sorted(ours) if not re.search(rf"\.{key.split('.')[-1]}\b", text)]
    assert not unread, f"keys that nothing reads: {unread}"
