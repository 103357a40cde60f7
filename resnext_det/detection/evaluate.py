"""Evaluate a detector on every set of DATASETS.TEST."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from ..files import write_json
from .data import test_loader_from_config


def evaluate_model(cfg: CfgNode, model: nn.Module) -> dict[str, dict]:
    """Run ``model`` over every set of DATASETS.TEST and write ``OUTPUT_DIR/results.json``.

    Returns:
        ``{"bbox": {"AP": ..., "AP50": ...}}`` in percent, by set where there are several.
    """
    results = {}
    for name in cfg.DATASETS.TEST:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", name)
        evaluator = COCOEvaluator(name, output_dir=folder, use_fast_impl=False)
        results[name] = inference_on_dataset(model, test_loader_from_config(cfg, name), evaluator)
    if len(results) == 1:
        (results,) = results.values()
    if comm.is_main_process():
        write_json(os.path.join(cfg.OUTPUT_DIR, "results.json"), results)
    return results
