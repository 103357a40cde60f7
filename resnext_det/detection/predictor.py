"""Run a detector over images and videos: drawn copies, and one JSON file in COCO's form."""

from __future__ import annotations

import glob
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from ..annotations.coco import Detections, read_ground_truth
from ..errors import UserError
from ..files import atomic_write
from ..images import BrokenImage, read_image
from ..reporting.boxes import class_color, draw_boxes
from .class_count import class_count_from_config
from .coco_evaluator import detections_of
from .data.mapper import ResizeShortestEdge
from .initial_weights import apply_preset, load_initial_weights
from .optimize import for_inference

logger = logging.getLogger(__name__)

PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
CODECS = {".avi": "MJPG"}
"""Of drawn videos, by extension; mp4v for all others."""
DETECTIONS_FILE = "detections.json"


class Predictor:
    """A detector that takes images as they come: resized as in its test configuration, several at a time."""

    def __init__(self, model: nn.Module, *, min_size: int, max_size: int, channel_order: str = "BGR"):
        """
        Args:
            model: a detectron2 detector with its weights; put into evaluation mode.
            min_size: length of the shorter side, ``INPUT.MIN_SIZE_TEST``; 0 keeps the size.
            max_size: limit of the longer side, ``INPUT.MAX_SIZE_TEST``.
            channel_order: what the model was trained on, ``INPUT.FORMAT``: BGR or RGB.
        """
        if channel_order not in ("BGR", "RGB"):
            raise UserError(f"INPUT.FORMAT {channel_order!r}: prediction knows BGR and RGB")
        self._model = model.eval()
        self._resize = ResizeShortestEdge([min_size, min_size], max_size)
        self._channel_order = channel_order

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Detections]:
        """Detections in each of the RGB images (H, W, 3) uint8; boxes in pixels of the image as given."""
        return [detections_of(output["instances"], 0) for output in self._model(self._inputs(pictures))]

    def optimize(self, cfg: CfgNode, examples: Callable[[], Iterable[np.ndarray]]) -> None:
        """Make the model fast as MODEL.RESNEXT.INFERENCE_DTYPE says; int8 measures its ranges on RGB ``examples``."""
        self._model = for_inference(cfg, self._model, lambda: (self._inputs([picture]) for picture in examples()))

    def _inputs(self, pictures: Sequence[np.ndarray]) -> list[dict]:
        inputs = []
        for picture in pictures:
            height, width = picture.shape[:2]
            ordered = picture[:, :, ::-1] if self._channel_order == "BGR" else picture
            resized = self._resize.get_transform(ordered).apply_image(ordered)
            image = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)).astype("float32"))
            inputs.append({"image": image, "height": height, "width": width})
        return inputs


def load_predictor(
    cfg: CfgNode, *, trust_pickle: bool = False, examples: Callable[[], Iterable[np.ndarray]] = tuple
) -> tuple[Predictor, list[int], list[str]]:
    """The detector of a config with MODEL.WEIGHTS in it, its dataset category ids and its class names.

    MODEL.RESNEXT.INFERENCE_DTYPE says how it is made fast.

    Args:
        trust_pickle: also open a MODEL.WEIGHTS that may run code.
        examples: gives RGB images like those to come, for int8 only.

    Raises:
        UserError: no weights, or weights that do not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: give the weights of a trained detector, MODEL.WEIGHTS FILE")
    cfg = apply_preset(cfg, trust_pickle=trust_pickle)
    model = build_model(cfg)
    found = load_initial_weights(cfg, model, allow_new_heads=False, trust_pickle=trust_pickle)
    sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    predictor = Predictor(model, **sizes, channel_order=cfg.INPUT.FORMAT)
    predictor.optimize(cfg, examples)
    return predictor, *categories_of(cfg, found.get("class_names", ()))


def categories_of(cfg: CfgNode, class_names: Sequence[str] = ()) -> tuple[list[int], list[str]]:
    """Dataset category ids and names of the model's classes.

    They come from the first set here that has as many classes, else from ``class_names`` (what the weights say of
    themselves) with the ids of a set that has all these names among others, or 1, 2, …
    """
    count = class_count_from_config(cfg)
    number = count.number if count else 0
    ids_found = list(range(1, number + 1))
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        registered = {entry[0]: entry[1] for entry in cfg.DATASETS.REGISTER}
        metadata = MetadataCatalog.get(name)
        names, ids = metadata.get("thing_classes"), metadata.get("thing_dataset_id_to_contiguous_id")
        if names is None and os.path.isfile(registered.get(name, "")):
            truth = read_ground_truth(registered[name])
            names, ids = truth.class_names, {c: i for i, c in enumerate(truth.category_ids.tolist())}
        if names is None:
            continue
        own = sorted(ids, key=ids.get) if ids else list(range(1, len(names) + 1))
        if len(names) == number:
            return own, list(names)
        if len(class_names) == number and set(class_names) <= set(names):  # DATASETS.DROP_UNUSED_ROOT left out one
            by_name = dict(zip(names, own, strict=True))
            ids_found = [by_name[name] for name in class_names]
    if len(class_names) == number:
        return ids_found, list(class_names)
    return ids_found, [f"class {i}" for i in range(1, number + 1)]


def find_inputs(inputs: Iterable[str], stdin: Iterable[str] = ()) -> list[Path]:
    """Images and videos: files, folders (all in them, sorted), patterns such as ``photos/*.jpg``, ``-`` for a list.

    Raises:
        UserError: nothing there by one of the names.
    """
    found: list[Path] = []
    for name in inputs:
        if name == "-":
            found += find_inputs(line.strip() for line in stdin if line.strip())
        elif os.path.isdir(name):
            files = [p for p in sorted(Path(name).rglob("*")) if p.suffix.lower() in PICTURES | VIDEOS]
            if not files:
                raise UserError(f"{name}: no images or videos in this folder")
            found += files
        elif os.path.isfile(name):
            found.append(Path(name))
        else:
            matches = [Path(p) for p in sorted(glob.glob(name, recursive=True)) if os.path.isfile(p)]
            if not matches:
                raise UserError(f"{name}: no such file, folder or pattern")
            found += matches
    return found


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """RGB (H, W, 3) uint8, by the rules of :mod:`.images`, as the detector saw its images in training.

    Raises:
        UserError: not an image, or a broken one.
    """
    try:
        return read_image(path, "RGB")
    except BrokenImage as error:
        raise UserError(f"{error}, or use --broken skip") from error


@dataclass
class Frame:
    """One image to look at: ``index`` counts a video's frames from 0 and is None for an image."""

    path: Path
    pixels: np.ndarray
    index: int | None = None
    rate: float = 0.0  # a video's, frames per second


@dataclass
class Summary:
    """What a prediction run did."""

    frames: int = 0
    detections: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)


def read_frames(paths: Sequence[Path], broken: str, summary: Summary) -> Iterator[Frame]:
    """All images and all frames of the videos. Broken ones are an error, or with ``skip`` named and counted."""
    for path in paths:
        try:
            if path.suffix.lower() in VIDEOS:
                yield from _video_frames(path)
            else:
                yield Frame(path, read_picture(path))
        except UserError as error:
            if broken == "error":
                raise
            summary.broken.append(str(path))
            logger.warning("skipped: %s", error)


def _video_frames(path: Path) -> Iterator[Frame]:
    video = cv2.VideoCapture(str(path))
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        index = 0
        while True:
            there, pixels = video.read()
            if not there:
                break
            yield Frame(path, np.ascontiguousarray(pixels[:, :, ::-1]), index, rate)
            index += 1
        if not index:
            raise UserError(f"{path}: no frame can be read from this video; convert it, or use --broken skip")
    finally:
        video.release()


class Writer:
    """Drawn images and videos in a folder, and ``detections.json`` when all is done."""

    def __init__(self, folder: Path, category_ids: Sequence[int], class_names: Sequence[str], draw: bool = True):
        self._folder, self._draw = folder, draw
        self._category_ids, self._class_names = list(category_ids), list(class_names)
        self._images: list[dict] = []
        self._parts: list[Detections] = []
        self._taken: dict[str, Path] = {}
        self._video: tuple[Path, cv2.VideoWriter] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, frame: Frame, detections: Detections) -> None:
        """Draw one image or frame, and keep its detections (category ids are the model's classes)."""
        height, width = frame.pixels.shape[:2]
        image = {"id": len(self._images) + 1, "file_name": str(frame.path), "width": width, "height": height}
        if frame.index is not None:
            image["frame"] = frame.index
        self._images.append(image)
        if self._draw:
            classes = detections.category_ids.tolist()
            scores = detections.scores.tolist()
            texts = [f"{self._class_names[c]} {100 * s:.0f}%" for c, s in zip(classes, scores, strict=True)]
            drawn = draw_boxes(frame.pixels, detections.boxes, texts, [class_color(c) for c in classes])
            self._write(frame, drawn)
        detections.image_ids = np.full(len(detections), image["id"], dtype=np.int64)
        detections.category_ids = np.array(self._category_ids, dtype=np.int64)[detections.category_ids]
        self._parts.append(detections)

    def _write(self, frame: Frame, drawn: Image.Image) -> None:
        if frame.index is None:
            # PNG where the image's own format is not for photographs or cannot be written
            suffix = frame.path.suffix if frame.path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") else ".png"
            drawn.save(self._name(frame.path, suffix), quality=92)
            return
        if self._video is None or self._video[0] != frame.path:
            self._close_video()
            suffix = frame.path.suffix.lower() if frame.path.suffix.lower() in (".avi", ".mkv", ".mov") else ".mp4"
            code = cv2.VideoWriter_fourcc(*CODECS.get(suffix, "mp4v"))  # type: ignore[attr-defined]
            target = self._name(frame.path, suffix)
            writer = cv2.VideoWriter(str(target), code, frame.rate, drawn.size)
            if not writer.isOpened():
                raise UserError(f"{target}: OpenCV cannot write this video; use --no-drawings for the JSON alone")
            self._video = frame.path, writer
        self._video[1].write(np.asarray(drawn)[:, :, ::-1])

    def _name(self, path: Path, suffix: str) -> Path:
        """A file of its own for each input, also where folders hold equal names."""
        name, number = path.stem + suffix, 1
        while name in self._taken and self._taken[name] != path:
            number += 1
            name = f"{path.stem}_{number}{suffix}"
        self._taken[name] = path
        return self._folder / name

    def _close_video(self) -> None:
        if self._video is not None:
            self._video[1].release()
            self._video = None

    def close(self) -> Path:
        """Finish the video and write ``detections.json``; returns its path."""
        self._close_video()
        categories = [{"id": c, "name": n} for c, n in zip(self._category_ids, self._class_names, strict=True)]
        annotations = list(Detections.concatenate(self._parts).records())
        path = self._folder / DETECTIONS_FILE
        with atomic_write(path) as file:
            json.dump({"images": self._images, "categories": categories, "annotations": annotations}, file)
        return path


def predict(
    predictor: Callable[[Sequence[np.ndarray]], list[Detections]],
    paths: Sequence[Path],
    writer: Writer,
    *,
    batch_size: int = 1,
    score_threshold: float = 0.5,
    broken: str = "error",
    progress: Callable[[str], object] | None = None,
) -> Summary:
    """Detect in every image and frame, ``batch_size`` at a time, and hand them to ``writer``.

    Args:
        predictor: as :class:`Predictor`.
        paths: images and videos of :func:`find_inputs`.
        score_threshold: detections below it are left out.
        broken: ``error`` or ``skip``, for images that cannot be read.
        progress: told the speed and the time left, about once a second.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: at least 1")
    summary = Summary()
    start = last = time.perf_counter()
    total = _count_frames(paths)
    batch: list[Frame] = []

    def flush() -> None:
        nonlocal last
        for frame, detections in zip(batch, predictor([f.pixels for f in batch]), strict=True):
            kept = detections.take(detections.scores >= score_threshold)
            writer.add(frame, kept)
            summary.frames += 1
            summary.detections += len(kept)
        batch.clear()
        now = time.perf_counter()
        if progress and (now - last > 1 or summary.frames >= total):
            speed = summary.frames / (now - start)
            left = max(total - summary.frames - len(summary.broken), 0) / speed
            progress(f"{summary.frames}/{total} images, {speed:.2f} per second, {left:.0f} s left")
            last = now

    for frame in read_frames(paths, broken, summary):
        batch.append(frame)
        if len(batch) == batch_size:
            flush()
    if batch:
        flush()
    summary.seconds = time.perf_counter() - start
    return summary


def _count_frames(paths: Sequence[Path]) -> int:
    total = 0
    for path in paths:
        if path.suffix.lower() in VIDEOS:
            video = cv2.VideoCapture(str(path))
            total += max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 1)
            video.release()
        else:
            total += 1
    return total
