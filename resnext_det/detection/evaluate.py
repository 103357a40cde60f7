"""Evaluate a detector on every set of DATASETS.TEST."""

from __future__ import annotations

import logging
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import build_augmentation
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from ..annotations.classes import match_classes
from ..annotations.dataset import Dataset
from ..annotations.masks import decoded
from ..engine.processes import decided_by_main
from ..engine.sampler import seed_everything
from ..errors import UserError, listed, nearest
from ..files import RESULTS_FILE, write_json
from ..prediction.run import Detect
from .class_count import class_count_from_config
from .coco_evaluator import FastCOCOEvaluator, metric_names
from .data.loaders import (
    calibration_inputs,
    component_of,
    load_dicts,
    mapper_from_config,
    one_by_one,
    test_loader_from_config,
)
from .optimize import for_inference
from .prediction.detector import Predictor, tiled
from .voc_evaluator import VOCEvaluator

logger = logging.getLogger(__name__)


def evaluate_model(
    cfg: CfgNode,
    model: nn.Module,
    *,
    sets: Mapping[str, Dataset] | None = None,
    class_names: Sequence[str] = (),
) -> dict[str, dict]:
    """Run ``model`` over every set of DATASETS.TEST and write ``OUTPUT_DIR/results.json``.

    ``OUTPUT_DIR/inference/NAME`` gets the detections in COCO's form and, with TEST.REPORT, ``report.html``. With
    TEST.AUG.ENABLED every image is seen at the sizes of TEST.AUG, and mirrored. A set without annotations is
    predicted and saved, and rated by nobody.

    Args:
        sets: of :func:`~.data.checked_sets.check_sets_from_config`; one that is not there is read by detectron2.
        class_names: of the model's classes, as its checkpoint holds them; sets get theirs in this order.

    Raises:
        UserError: a set of other classes than ``class_names``.

    Returns:
        ``{"bbox": {"AP": ..., "AP50": ...}}`` in percent, by set where there are several; empty on other processes
        than the first.
    """
    keys = cfg.MODEL.RESNEXT
    calibration = partial(calibration_inputs, cfg, sets=sets)
    model = for_inference(model, keys.INFERENCE_DTYPE, keys.INFERENCE_BACKEND, calibration)
    class_names = class_names if class_count_from_config(cfg) is not None else ()
    sets = in_order_of_model(sets or {}, class_names)
    evaluated = with_test_time_augmentation(cfg, model) if cfg.TEST.AUG.ENABLED else model
    if cfg.TEST.TILE:
        cfg, evaluated = with_tiles(cfg, model)
    results, tables = {}, {}
    for name in cfg.DATASETS.TEST:
        evaluator = _evaluator(cfg, name, sets.get(name))
        loader = test_loader_from_config(cfg, name, sets)
        if name not in sets:
            _check_order(name, class_names)
        results[name] = inference_on_dataset(evaluated, loader, evaluator)
        tables[name] = getattr(evaluator, "tables", {})
    results = decided_by_main(lambda: _save(cfg.OUTPUT_DIR, results, tables))
    return results if comm.is_main_process() else {}


def check_metric(name: str, class_names: Sequence[str], max_detections: int, *, proposals: bool) -> None:
    """Hold TEST.BEST_METRIC against the numbers that an evaluation gives, before hours of training.

    Raises:
        UserError: another name; those of the model are listed.
    """
    if not name or proposals and name == "AP":  # the default
        return
    known = metric_names(() if proposals else class_names, max_detections, proposals=proposals)
    if name not in known and (class_names or not name.startswith(("AP-", "AP50-", "F1-"))):
        general = metric_names((), max_detections, proposals=proposals)
        raise UserError(
            f"TEST.BEST_METRIC {name!r}: choose from {listed(general, 20)}"
            f"{'' if proposals else ', AP-CLASS, AP50-CLASS, F1-CLASS'}, or empty for none{nearest(name, known)}"
        )


def _check_order(name: str, class_names: Sequence[str]) -> None:
    """Raises UserError where a set that no check has read does not have the model's classes in the model's order."""
    found = MetadataCatalog.get(name).get("thing_classes")
    if class_names and found is not None and list(found) != list(class_names):
        match_classes(class_names, found, model="the weights", source=f"the set {name}")
        raise UserError(
            f"the set {name} has its classes in another order than the weights, and is not matched by name: it is not "
            "checked; set DATASETS.CHECK to auto"
        )


def in_order_of_model(
    sets: Mapping[str, Dataset], class_names: Sequence[str], *, model: str = "the weights"
) -> dict[str, Dataset]:
    """The sets with their classes in the model's order; a changed one is logged.

    Raises:
        UserError: a set of other classes.
    """
    if not class_names:
        return dict(sets)
    found = {name: dataset.in_order_of(class_names, model=model) for name, dataset in sets.items()}
    for name, dataset in found.items():
        if dataset is not sets[name]:
            logger.warning("%s numbers its classes in another order than %s: matched by name", name, model)
    return found


def _evaluator(cfg: CfgNode, name: str, truth: Dataset | None) -> FastCOCOEvaluator:
    """VOC's for VOC's image sets, COCO's for all others."""
    options = {
        "output_dir": os.path.join(cfg.OUTPUT_DIR, "inference", component_of(name)),
        "kpt_oks_sigmas": cfg.TEST.KEYPOINT_OKS_SIGMAS,
        "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        "report": cfg.TEST.REPORT,
        "truth": truth,
        "max_dets_per_image": cfg.TEST.MAX_DETECTIONS,
        "areas": areas_from_config(cfg),
        "max_megapixels": cfg.DATASETS.MAX_MEGAPIXELS,
    }
    if MetadataCatalog.get(name).get("evaluator_type") == "pascal_voc":
        return VOCEvaluator(name, rounding=cfg.TEST.VOC_ROUNDING, **options)
    return FastCOCOEvaluator(name, **options)


def areas_from_config(cfg: CfgNode) -> dict[str, tuple[float, float]] | None:
    """TEST.AREAS as :func:`~resnext_det.annotations.evaluation.evaluate` takes them; None for COCO's.

    Raises:
        UserError: an entry that is not a name and two rising numbers.
    """
    found = {}
    for entry in cfg.TEST.AREAS:
        if not isinstance(entry, list | tuple) or len(entry) != 3 or not isinstance(entry[0], str):
            raise UserError(f"TEST.AREAS: {entry!r}: give [name, from, to] in square pixels, such as [tiny, 0, 256]")
        name, *bounds = entry
        if not all(isinstance(b, int | float) for b in bounds) or not 0 <= bounds[0] < bounds[1]:
            raise UserError(f"TEST.AREAS: {name} from {bounds[0]!r} to {bounds[1]!r}: give two rising numbers")
        found[name] = (float(bounds[0]), float(bounds[1]))
    return found or None


def thresholds_of(results: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """What a checkpoint's metadata say of the scores from which to keep detections, by the first set's best F1."""
    found = results if "bbox" in results else next((r for r in results.values() if isinstance(r, Mapping)), {})
    boxes = found.get("coco", found.get("bbox", {}))  # of a set in VOC's form, "bbox" holds VOC's numbers
    if not math.isfinite(boxes.get("threshold", math.nan)):
        return {}
    best = [boxes.get(f"threshold-{name}", math.nan) for name in class_names]
    return {"thresholds": [boxes["threshold"] if math.isnan(value) else value for value in best]}


def _save(folder: str, results: dict[str, dict], tables: dict[str, dict]) -> dict[str, dict]:
    """Log the sets' numbers and write RESULTS_FILE, the tables by threshold too; returns the numbers."""
    for name, found in results.items():
        for task in sorted(found):
            log_paper_view(name, task, found[task])
    written = {
        name: {**found, **({"thresholds": tables[name]} if tables[name] else {})} for name, found in results.items()
    }
    if len(results) == 1:
        ((results,), (written,)) = results.values(), written.values()
    path = os.path.join(folder, RESULTS_FILE)
    write_json(path, written)
    logger.info("all numbers are in %s", path)
    return results


def log_paper_view(name: str, task: str, metrics: dict[str, float]) -> None:
    """One line with the two numbers of the paper's Table 8, or with the recall of proposals."""
    if "AP50" in metrics:
        logger.info("%s, %s: AP@0.5 / AP %.1f / %.1f", name, task, metrics["AP50"], metrics["AP"])
    else:
        recall = ", ".join(f"{key} {metrics[key]:.1f}" for key in ("AR@100", "AR@1000") if key in metrics)
        logger.info("%s, %s: %s", name, task, recall)


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> GeneralizedRCNNWithTTA:
    """detectron2's multi-scale and flip test of a Faster R-CNN, as TEST.AUG says.

    Raises:
        UserError: a model or setting that it does not know.
    """
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" or cfg.MODEL.LOAD_PROPOSALS or cfg.MODEL.KEYPOINT_ON:
        raise UserError(
            "TEST.AUG.ENABLED: test-time augmentation needs MODEL.META_ARCHITECTURE GeneralizedRCNN with proposals of "
            "its own and no keypoints; set TEST.AUG.ENABLED False"
        )
    return GeneralizedRCNNWithTTA(cfg, model)


def with_tiles(cfg: CfgNode, model: nn.Module) -> tuple[CfgNode, nn.Module]:
    """A model that looks at its images by TEST.TILE, and the config whose loader leaves the resizing to it.

    Raises:
        UserError: test-time augmentation as well.
    """
    if cfg.TEST.AUG.ENABLED:
        raise UserError("TEST.TILE and TEST.AUG.ENABLED: tiles are seen at one size; set one of them")
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    predictor = Predictor(model, **sizes, channel_order=cfg.INPUT.FORMAT)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.freeze()
    return cfg, OfPixels(tiled(predictor, cfg.TEST.TILE, cfg.TEST.TILE_OVERLAP), cfg.INPUT.FORMAT)


class OfPixels(nn.Module):
    """What finds boxes in RGB arrays, in the place of a detectron2 model whose images keep their size."""

    def __init__(self, detect: Detect, channel_order: str) -> None:
        super().__init__()
        self.detect, self.channel_order = detect, channel_order

    def forward(self, inputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Instances]]:
        outputs = []
        for item in inputs:
            pixels = item["image"].permute(1, 2, 0).to(torch.uint8).numpy()
            pixels = pixels[:, :, ::-1] if self.channel_order == "BGR" else pixels
            (found,) = self.detect([np.ascontiguousarray(pixels)])
            boxes, scores = torch.from_numpy(found.boxes.copy()), torch.from_numpy(found.scores.astype(np.float32))
            boxes[:, 2:] += boxes[:, :2]
            classes = torch.from_numpy(found.category_ids.astype(np.int64))
            instances = Instances(pixels.shape[:2], pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            if found.masks is not None:
                masks = [decoded(counts, pixels.shape[:2]) for counts in found.masks]
                instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *pixels.shape[:2]))
            outputs.append({"instances": instances})
        return outputs


def validation_loss(cfg: CfgNode, model: nn.Module, *, sets: Mapping[str, Dataset] | None = None) -> dict[str, float]:
    """The losses of training on the images of DATASETS.TEST, resized as in testing, in all processes together.

    Which proposals are sampled depends on the image alone, not on the call or the number of processes. Batch norms
    keep their statistics.

    Returns:
        {"loss_cls", ..., "total_loss"}, means over the images; empty on other processes than the first.
    """
    dicts = load_dicts(
        cfg.DATASETS.TEST,
        classes=class_count_from_config(cfg),
        filter_empty=False,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TEST if cfg.MODEL.LOAD_PROPOSALS else None,
        sets=sets,
        follow_links=cfg.DATASETS.FOLLOW_LINKS,
    )
    mapper = mapper_from_config(cfg, is_train=True, augmentations=build_augmentation(cfg, is_train=False))
    loader = one_by_one(dicts, mapper, cfg.DATALOADER.NUM_WORKERS)
    parts = comm.gather(_summed_losses(model, loader))
    images = sum(number for number, _ in parts)
    names = dict.fromkeys(name for _, sums in parts for name in sums)  # a process without images has none
    losses = {name: sum(sums.get(name, 0.0) for _, sums in parts) / images for name in names}
    return {**losses, "total_loss": sum(losses.values())} if losses else {}


def _summed_losses(model: nn.Module, loader: Iterable[list[dict]]) -> tuple[int, dict[str, float]]:
    """(images, {loss: its sum over them}) of this process."""
    images, sums = 0, {}
    with torch.no_grad(), training_losses(model), EventStorage():
        for batch in loader:
            seed_everything([zlib.crc32(str(image["image_id"]).encode()) for image in batch])
            for name, loss in model(batch).items():
                sums[name] = sums.get(name, 0.0) + loss.item() * len(batch)
            images += len(batch)
    return images, sums


@contextmanager
def training_losses(model: nn.Module) -> Iterator[None]:
    """The model gives losses, as in training, and its batch norms still use what they know."""
    before = {module: module.training for module in model.modules()}
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
