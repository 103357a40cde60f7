"""A trained detector as a folder that other programs run: what it says of itself, and its accuracy."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

import resnext_det

from ...annotations.dataset import Dataset
from ...artifacts.about import About
from ...artifacts.running import graph_inputs
from ...prediction.inputs import read_rgb
from ...prediction.run import Detect
from ...weights.reading import sha256
from ...weights.sources import locate
from ..channels import rgb_only
from ..data.checked_sets import check_sets_from_config
from ..data.loaders import known_sets, register_sets
from ..evaluate import OfPixels, evaluate_model
from ..prediction.detector import categories_of

logger = logging.getLogger(__name__)


def about_of(cfg: CfgNode, found: Mapping[str, Any], graph: str, precision: str) -> About:
    """What the folder of a detector says of itself.

    Args:
        cfg: of the detector, MODEL.WEIGHTS included.
        found: the metadata of these weights.
        graph, precision: as :class:`~resnext_det.artifacts.about.About`.
    """
    rgb_only(cfg.INPUT.CHANNELS, "an export")
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


def calibration_of(
    about: About, images: Sequence[Path], max_megapixels: float
) -> tuple[dict[str, str], list[list[np.ndarray]]]:
    """SHA-256 of each image, and the graph's inputs."""
    inputs = [graph_inputs(about, read_rgb(path, max_megapixels=max_megapixels)) for path in images]
    return {str(path): sha256(path) for path in images}, inputs


def evaluate_artifact(
    cfg: CfgNode, detect: Detect, class_names: Sequence[str], *, sets: Mapping[str, Dataset] | None = None
) -> dict[str, dict]:
    """:func:`~resnext_det.detection.evaluate.evaluate_model` of an export, or what looks at RGB arrays as one does."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0  # it resizes by itself
    cfg.MODEL.RESNEXT.INFERENCE_DTYPE, cfg.TEST.AUG.ENABLED = "off", False
    cfg.freeze()
    return evaluate_model(cfg, OfPixels(detect, cfg.INPUT.FORMAT), sets=sets, class_names=class_names)


def measure(cfg: CfgNode, detect: Detect, class_names: Sequence[str]) -> dict[str, dict]:
    """What :func:`evaluate_artifact` measures on DATASETS.TEST; results of OUTPUT_DIR, the training's, stay."""
    register_sets(cfg.DATASETS.REGISTER)
    known_sets(cfg.DATASETS.TEST, "TEST")
    cfg = cfg.clone()
    cfg.defrost()
    with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR:
        cfg.freeze()
        return evaluate_artifact(cfg, detect, class_names, sets=check_sets_from_config(cfg, training=False))
