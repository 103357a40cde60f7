"""Every pretraining configuration loads and builds, and every key is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resnext_det.classification.config import check_config, get_config
from resnext_det.engine.config import load_config
from resnext_det.variants import parse_name

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path
    for folder in ("imagenet", "imagenet5k", "cifar", "quickstart")
    for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))
    if folder != "quickstart" or path.name == "pretrain.yaml"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_loads(path: Path) -> None:
    cfg = load_config(get_config(), str(path))
    check_config(cfg)
    assert parse_name(cfg.MODEL.NAME).name == cfg.MODEL.NAME or path.parent.name == "cifar"


def test_every_key_is_read() -> None:
    code = "".join(
        path.read_text()
        for path in [*(ROOT / "resnext_det/classification").glob("*.py"), ROOT / "tools/pretrain.py"]
        if path.name != "config.py"
    )
    code = code.replace("solver.", "cfg.SOLVER.")
    cfg = get_config()
    keys = [f"{s}.{k}" for s, node in cfg.items() if isinstance(node, dict) for k in node] + ["OUTPUT_DIR", "SEED"]
    unread = [key for key in keys if not re.search(rf"cfg\.{re.escape(key)}\b", code)]
    assert not unread
