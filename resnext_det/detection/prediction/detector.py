"""A trained detector ready to look at images: found, loaded, made fast."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from ...annotations.classes import match_classes
from ...annotations.coco import Detections, read_ground_truth
from ...engine.checkpoint import last_checkpoint
from ...engine.config import load_config
from ...errors import UserError
from ...inference import CHOICES
from ...prediction.detector import Detector, ImageLike, pixels_of
from ...prediction.hub import local
from ...prediction.run import DEFAULT_THRESHOLD, Detect
from ...prediction.tiles import Tiled
from ...weights import Reader, ReadOnce, read_checkpoint
from ..channels import rgb_only, with_statistics
from ..class_count import class_count_from_config
from ..coco_evaluator import detections_of
from ..config import add_resnext_config
from ..data.mapper import ResizeShortestEdge
from ..initial_weights import apply_preset, load_initial_weights, weights_of
from ..optimize import for_inference
from ..regions import needed_objectness

logger = logging.getLogger(__name__)


class Predictor:
    """A detector that takes arrays: resized as in its test configuration, several at a time, one call after another.

    Attributes:
        thresholds: the scores from which its weights say that detections are kept, one for each class, or one for all.
    """

    def __init__(
        self, model: nn.Module, *, min_size: int, max_size: int, channel_order: str = "BGR", channels: int = 3
    ):
        """
        Args:
            model: a detectron2 detector with its weights; put into evaluation mode.
            min_size: length of the shorter side, ``INPUT.MIN_SIZE_TEST``; 0 keeps the size.
            max_size: limit of the longer side, ``INPUT.MAX_SIZE_TEST``.
            channel_order: what the model was trained on, ``INPUT.FORMAT``: BGR or RGB.
            channels: ``INPUT.CHANNELS``; others than three stay in their order.
        """
        if channel_order not in ("BGR", "RGB"):
            raise UserError(f"INPUT.FORMAT {channel_order!r}: prediction knows BGR and RGB")
        self._model = model.eval()
        self._resize = ResizeShortestEdge([min_size, min_size], max_size)
        self._turned = channel_order == "BGR" and channels == 3
        self.thresholds: float | list[float] = DEFAULT_THRESHOLD
        self._lock = threading.Lock()  # copies by OpenVINO and compiled ones serve one call at a time

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections in each of the RGB images (H, W, 3) uint8; boxes in pixels of the image as given."""
        with self._lock, torch.no_grad():
            return [detections_of(output["instances"], 0) for output in self._model(self._inputs(images))]

    def with_features(self, images: Sequence[np.ndarray]) -> list[tuple[Detections, np.ndarray]]:
        """As a call, each with the feature vectors (N, C) float32 of its boxes: what the classifier sees of a region.

        Raises:
            UserError: a detector without regions, or with heads of several stages.
        """
        model = self._model
        heads = getattr(model, "roi_heads", None)
        if not isinstance(model, GeneralizedRCNN) or type(getattr(heads, "box_head", None)) is nn.ModuleList:
            raise UserError("features: this kind of detector has no feature vector of a region")
        with self._lock, torch.no_grad():
            inputs = self._inputs(images)
            batch = model.preprocess_image(inputs)
            found = model.inference(inputs, do_postprocess=False)
            vectors = _region_features(heads, model.backbone(batch.tensor), found)
            for instances, features in zip(found, vectors, strict=True):
                instances.region_features = features  # follows its box when empty ones are dropped
            outputs = model._postprocess(found, inputs, batch.image_sizes)
            kept = [output["instances"].to("cpu") for output in outputs]
            return [(detections_of(one, 0), one.region_features.float().numpy()) for one in kept]

    def regions_needed(self, image: np.ndarray) -> tuple[float, Tensor]:
        """:func:`~..regions.needed_objectness` of an RGB image, for detections from ``thresholds`` on."""
        with self._lock:
            return needed_objectness(self._model, self._inputs([image]), self.thresholds)

    def optimize(self, dtype: str, backend: str, examples: Callable[[], Iterable[np.ndarray]]) -> None:
        """Put :func:`for_inference`'s model in the place of this; int8 measures its ranges on RGB ``examples``."""
        inputs = lambda: (self._inputs([image]) for image in examples())  # noqa: E731
        self._model = for_inference(self._model, dtype, backend, inputs)

    def _inputs(self, images: Sequence[np.ndarray]) -> list[dict]:
        inputs = []
        for image in images:
            height, width = image.shape[:2]
            ordered = image[:, :, ::-1] if self._turned else image
            resized = self._resize.get_transform(ordered).apply_image(ordered)
            image = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)).astype("float32"))
            inputs.append({"image": image, "height": height, "width": width})
        return inputs


def _region_features(heads: nn.Module, maps: dict[str, Tensor], found: Sequence[Instances]) -> Sequence[Tensor]:
    boxes = [instances.pred_boxes for instances in found]
    if isinstance(heads, Res5ROIHeads):
        vectors = heads._shared_roi_transform([maps[name] for name in heads.in_features], boxes).mean(dim=(2, 3))
    elif isinstance(heads, StandardROIHeads):
        vectors = heads.box_head(heads.box_pooler([maps[name] for name in heads.box_in_features], boxes)).flatten(1)
    else:
        raise UserError(f"features: the feature vectors of {type(heads).__name__} are not known")
    return vectors.split([len(one) for one in boxes])


def load_trained(
    file_or_folder: str | os.PathLike,
    *,
    dtype: str,
    device: str,
    config: str | os.PathLike,
    score_threshold: float | None,
    examples: Sequence[ImageLike],
    trust_pickle: bool,
) -> Detector:
    """A detector from the weights of a training; arguments and errors are :func:`resnext_det.load_detector`'s."""
    if dtype not in CHOICES:
        raise UserError(f"dtype {dtype!r}: choose from {', '.join(CHOICES)}")
    weights, beside = weights_in(file_or_folder)
    read = ReadOnce(trust_pickle)
    opts = ["MODEL.DEVICE", device, "MODEL.RESNEXT.INFERENCE_DTYPE", dtype]
    cfg = config_of(weights, os.fspath(config), opts, beside=beside, read=read)
    if dtype == "int8" and not examples:
        raise UserError("dtype 'int8' measures its ranges on images: give some dozen as examples=[...]")
    limit, channels = cfg.DATASETS.MAX_MEGAPIXELS, cfg.INPUT.CHANNELS
    predictor, ids, names = load_predictor(cfg, read, examples=lambda: (pixels_of(image, limit) for image in examples))
    threshold = predictor.thresholds if score_threshold is None else score_threshold
    return Detector(
        tiled(predictor, cfg.TEST.TILE, cfg.TEST.TILE_OVERLAP),
        names,
        ids,
        score_threshold=threshold,
        max_megapixels=limit,
        channels=channels,
    )


def tiled(predictor: Predictor, side: int, overlap: float) -> Detect:
    """The predictor, or where TEST.TILE gives a side, it on tiles."""
    return Tiled(predictor, side, overlap) if side else predictor


def weights_in(file_or_folder: str | os.PathLike) -> tuple[str, str]:
    """The weights, and for a folder the ``config.yaml`` beside them (else "").

    Raises:
        UserError: a folder without a checkpoint.
    """
    path = local(file_or_folder)
    if not os.path.isdir(path):
        return path, ""
    folder = Path(path)
    names = [last_checkpoint(folder), "model_final.pth", "model_best.pth"]
    found = next((folder / name for name in names if name and (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{path}: holds no checkpoint of a training; give the file of the weights")
    config = folder / "config.yaml"
    logger.info("%s: taking %s", path, found.name)
    return str(found), str(config) if config.is_file() else ""


def config_of(
    weights: str, config_file: str = "", opts: Sequence[str] = (), *, beside: str = "", read: Reader = read_checkpoint
) -> CfgNode:
    """The configuration of a detector: of a file, or the one that its weights hold, with MODEL.WEIGHTS in it.

    Args:
        config_file: over what the weights hold.
        opts: ``KEY VALUE`` pairs over both.
        beside: a file for weights that hold none.

    Raises:
        UserError: the weights hold none, or it cannot be read.
    """
    cfg = get_cfg()
    add_resnext_config(cfg)
    opts = [*opts, *(["MODEL.WEIGHTS", weights] if weights else [])]
    if config_file:
        return load_config(cfg, config_file, opts)
    if not weights:
        raise UserError("no weights: give those of a trained detector, --weights FILE")
    text = read(weights, branch="").metadata.get("config")
    if text is None and beside:
        return load_config(cfg, beside, opts)
    if not isinstance(text, str):
        raise UserError(
            f"{weights}: does not hold its configuration (older files do not); name it: --config-file "
            "OUTPUT_DIR/config.yaml, in Python config="
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(text, encoding="utf-8", errors="replace")
        if any(line.lstrip("\"' ").startswith("_BASE_") for line in text.splitlines()):  # it would read other files
            raise UserError(f"{weights}: the configuration in it names another file as _BASE_; give --config-file")
        try:
            # Training may have run where there was a GPU, and there is none here.
            return load_config(cfg, str(file), ["MODEL.DEVICE", "auto", *opts])
        except (UserError, yaml.YAMLError) as error:
            words = (
                str(error).replace(f"config file {file}", "its configuration").replace(str(file), "its configuration")
            )
            raise UserError(f"{weights}: {words}; another can be given with --config-file") from None


def config_of_arguments(args: Namespace, read: Reader) -> CfgNode:
    """The configuration by a command's ``--weights``, ``--config-file`` and ``KEY VALUE`` pairs.

    Raises:
        UserError: as :func:`config_of`; two different weights.
    """
    in_opts = dict(zip(args.opts[::2], args.opts[1::2], strict=False)).get("MODEL.WEIGHTS", "")
    if args.weights and in_opts and args.weights != in_opts:
        raise UserError(f"--weights {args.weights} and MODEL.WEIGHTS {in_opts}: give one of them")
    weights, beside = weights_in(args.weights or in_opts)
    return config_of(weights, args.config_file or "", args.opts, beside=beside, read=read)


def load_predictor(
    cfg: CfgNode, read: Reader = read_checkpoint, *, examples: Callable[[], Iterable[np.ndarray]] = tuple
) -> tuple[Predictor, list[int], list[str]]:
    """The detector of a config with MODEL.WEIGHTS in it, its dataset category ids and its class names.

    MODEL.RESNEXT.INFERENCE_DTYPE says how it is made fast.

    Args:
        read: reads MODEL.WEIGHTS.
        examples: gives RGB images like those to come, for int8 only.

    Raises:
        UserError: no weights, or weights that do not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: give the weights of a trained detector, --weights FILE")
    if cfg.MODEL.RESNEXT.INFERENCE_DTYPE == "int8":
        rgb_only(cfg.INPUT.CHANNELS, "int8")
    cfg = apply_preset(cfg, read)
    if cfg.INPUT.CHANNELS != 3:
        cfg = with_statistics(cfg, weights_of(cfg, read).metadata)
    model = build_model(cfg)
    found = load_initial_weights(cfg, model, allow_new_heads=False, read=read)
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    predictor = Predictor(model, **sizes, channel_order=cfg.INPUT.FORMAT, channels=cfg.INPUT.CHANNELS)
    keys = cfg.MODEL.RESNEXT
    predictor.optimize(keys.INFERENCE_DTYPE, keys.INFERENCE_BACKEND, examples)
    ids, names = categories_of(cfg, found.get("class_names", ()))
    own = found.get("thresholds") or []
    if len(own) == len(names):
        predictor.thresholds = list(own)
    return predictor, ids, names


def categories_of(cfg: CfgNode, class_names: Sequence[str] = ()) -> tuple[list[int], list[str]]:
    """Dataset category ids and names of the model's classes.

    The names are ``class_names``, from the weights. The ids are those of the same names in a set of the config: the
    first with as many classes, in any order, or with these among others; else 1, 2, ... Weights without names have
    those of the first set that has as many.

    Raises:
        UserError: the set has as many classes and other names.
    """
    count = class_count_from_config(cfg)
    number = count.number if count else 0
    named = list(class_names) if len(class_names) == number else []
    ids_found = list(range(1, number + 1))
    for name, names, own in _classes_of_sets(cfg):
        if named and len(names) == number:
            places = match_classes(named, names, model=cfg.MODEL.WEIGHTS or "the weights", source=f"the set {name}")
            if places != sorted(places):
                logger.warning("the set %s has the weights' classes in another order; they keep their names", name)
            return [own[place] for place in places], named
        if len(names) == number:
            return own, names
        if named and set(named) <= set(names):  # DATASETS.DROP_UNUSED_ROOT left out one
            by_name = dict(zip(names, own, strict=True))
            ids_found = [by_name[name] for name in named]
    return ids_found, named or [f"class {i}" for i in range(1, number + 1)]


def _classes_of_sets(cfg: CfgNode) -> Iterator[tuple[str, list[str], list[int]]]:
    """Name, class names and category ids of each set of the config that is known here."""
    registered = {entry[0]: entry[1] for entry in cfg.DATASETS.REGISTER}
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name)
        names, ids = metadata.get("thing_classes"), metadata.get("thing_dataset_id_to_contiguous_id")
        if names is not None:
            yield name, list(names), sorted(ids, key=ids.get) if ids else list(range(1, len(names) + 1))
        elif os.path.isfile(registered.get(name, "")):
            truth = read_ground_truth(registered[name])
            yield name, truth.class_names, truth.category_ids.tolist()
