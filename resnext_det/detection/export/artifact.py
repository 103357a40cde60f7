"""A trained detector as a folder that other programs run: what it says of itself, and its accuracy."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import nn

import resnext_det

from ...annotations.dataset import Dataset
from ...artifacts.about import About
from ...artifacts.resizing import resized
from ...artifacts.running import ArtifactPredictor
from ...prediction.inputs import read_rgb
from ...weights.reading import sha256
from ...weights.sources import locate
from ..channels import rgb_only
from ..data.checked_sets import check_sets_from_config
from ..data.loaders import known_sets, register_sets
from ..evaluate import evaluate_model
from ..prediction.detector import categories_of

logger = logging.getLogger(__name__)


def about_of(cfg: CfgNode, found: Mapping[str, Any], graph: str, precision: str) -> About:
    """What the folder of a detector says of itself.

    Args:
        cfg: of the detector, MODEL.WEIGHTS included.
        found: the metadata of these weights.
        graph, precision: as :class:`~resnext_det.artifacts.about.About`.
    """
    rgb_only(cfg, "an export")
    category_ids, class_names = categories_of(cfg, found.get("class_names", ()))
    own = found.get("thresholds") or ()
    versions = {"resnext_det": resnext_det.__version__}
    for package in ("torch", "detectron2", "onnx", "openvino", "nncf"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # detectron2 may come from the source release of another name
            continue
    return About(
        graph=graph,
        precision=precision,
        class_names=list(class_names),
        category_ids=[int(i) for i in category_ids],
        channel_order=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        model_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        thresholds=[float(value) for value in own] if len(own) == len(class_names) else [],
        weights_sha256=sha256(locate(cfg.MODEL.WEIGHTS)[0]),
        versions=versions,
        config=cfg.dump(),
    )


def calibration_of(cfg: CfgNode, images: Sequence[Path]) -> tuple[dict[str, str], list[list[np.ndarray]]]:
    """SHA-256 of each image, and the graph's inputs: ``images``, ``sizes``, ``original_sizes``."""
    inputs = []
    for path in images:
        pixels = read_rgb(path, max_megapixels=cfg.DATASETS.MAX_MEGAPIXELS)
        small = resized(pixels, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        ordered = small[:, :, ::-1] if cfg.INPUT.FORMAT == "BGR" else small
        image = np.ascontiguousarray(ordered.transpose(2, 0, 1)[None], dtype=np.float32)
        inputs.append([image, *(np.array([size[:2]], dtype=np.int64) for size in (small.shape, pixels.shape))])
    return {str(path): sha256(path) for path in images}, inputs


class ArtifactModel(nn.Module):
    """An export in the place of a detectron2 model: inputs of a test loader whose images keep their size."""

    def __init__(self, predictor: ArtifactPredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, inputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        """As detectron2's detectors in evaluation."""
        return [{"instances": self._instances(item)} for item in inputs]

    def _instances(self, item: Mapping[str, Any]) -> Instances:
        pixels = item["image"].permute(1, 2, 0).to(torch.uint8).numpy()
        order = self.predictor.about.channel_order
        found = self.predictor.arrays(np.ascontiguousarray(pixels[:, :, ::-1]) if order == "BGR" else pixels)
        boxes, scores, classes = (torch.from_numpy(np.array(part)) for part in found)
        return Instances(pixels.shape[:2], pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes.long())


def evaluate_artifact(
    cfg: CfgNode, predictor: ArtifactPredictor, *, sets: Mapping[str, Dataset] | None = None
) -> dict[str, dict]:
    """:func:`~resnext_det.detection.evaluate.evaluate_model` of an export on DATASETS.TEST."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = 0, predictor.about.channel_order  # it resizes by itself
    cfg.MODEL.RESNEXT.INFERENCE_DTYPE, cfg.TEST.AUG.ENABLED = "off", False
    cfg.freeze()
    return evaluate_model(cfg, ArtifactModel(predictor), sets=sets, class_names=predictor.about.class_names)


def measure(cfg: CfgNode, predictor: Any) -> dict[str, dict]:
    """Accuracy on DATASETS.TEST of a predictor that is an export; results of OUTPUT_DIR, the training's, stay."""
    register_sets(cfg.DATASETS.REGISTER)
    known_sets(cfg.DATASETS.TEST, "TEST")
    cfg = cfg.clone()
    cfg.defrost()
    with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
        cfg.freeze()
        return evaluate_artifact(cfg, predictor, sets=check_sets_from_config(cfg, training=False))
