"""Golden parameters, multiply-adds and activations of every config's network.

``python tests/test_complexity.py`` writes ``golden_complexity.json`` anew; look at the difference before you commit it.
Classifiers are counted at their test crop; of detectors all parameters, and the trunk at 800 x 1344.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.modeling import build_model
from torch import nn

from resnext_det.classification.config import get_config
from resnext_det.classification.train import build_classifier
from resnext_det.detection.config import setup
from resnext_det.engine.config import load_config

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("golden_complexity.json")
DETECTOR_SIDES = (800, 1344)


def networks() -> list[str]:
    """The configs of a network, relative to ``configs/``: those that a run can start from."""
    files = (path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
    return sorted(name for name in files if not name.startswith("reproduce/") and "Base" not in name)


def classes_of(name: str) -> int:
    """Of the data that a classification config is for."""
    sizes = {"imagenet5k": 5000, "tinyimagenet": 50, "quickstart": 10, "cifar": 100 if "cifar100" in name else 10}
    return sizes.get(name.split("/")[0], 1000)


def counts(model: nn.Module, sides: tuple[int, int]) -> tuple[int, int]:
    """Multiply-adds and activations (as pycls counts them: outputs) of all convolutions and linear layers."""
    counted = [0, 0]

    def count(layer: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        counted[0] += output.numel() * layer.weight[0].numel()
        counted[1] += output.numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model.eval()(torch.zeros(1, 3, *sides, device="meta"))
    for handle in handles:
        handle.remove()
    return counted[0], counted[1]


def complexity(name: str) -> dict[str, int]:
    """{"parameters", "multiply_adds", "activations"} of the config ``name``."""
    file = str(ROOT / "configs" / name)
    if name.startswith("detection/"):
        cfg = setup(file, ["MODEL.DEVICE", "cpu"]).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = build_model(cfg)
        counted, sides = model.backbone, DETECTOR_SIDES
    else:
        cfg = load_config(get_config(), file, ["MODEL.DEVICE", "cpu"])
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = build_classifier(cfg, classes_of(name))
        counted, sides = model, (cfg.TEST.CROP_SIZE,) * 2
    multiply_adds, activations = counts(counted, sides)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "multiply_adds": multiply_adds, "activations": activations}


@pytest.mark.parametrize("name", networks())
def test_complexity_is_what_it_was(name: str) -> None:
    assert complexity(name) == json.loads(GOLDEN.read_text("utf-8")).get(name), "python tests/test_complexity.py"


def test_nothing_golden_is_left_of_a_config_that_is_gone() -> None:
    assert set(json.loads(GOLDEN.read_text("utf-8"))) == set(networks())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    GOLDEN.write_text(json.dumps({name: complexity(name) for name in networks()}, indent=1) + "\n", "utf-8")
