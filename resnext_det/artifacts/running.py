"""A detector from its files: by onnxruntime or OpenVINO, with numpy and Pillow, without torch and detectron2."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..annotations.coco import Detections
from ..annotations.masks import encoded
from ..errors import UserError
from ..files import shown
from ..inference.runtime import available_cores, load, processor, signal_stack_kept
from . import cache
from .about import METADATA, ONNX, About, parse, read_about
from .resizing import resized

logger = logging.getLogger(__name__)

Arrays = Sequence[np.ndarray]
NOT_OPENED = "cannot be opened by"


class ArtifactPredictor:
    """Images to detections; threads may share it, and it can be pickled: what wakes up opens its files again.

    Attributes:
        about: what the files say of themselves.
        path: the folder, or an ONNX file.
        runtime: what runs it, in words.
    """

    runtime = "onnxruntime"

    def __init__(self, path: str | os.PathLike, *, threads: int = 0) -> None:
        """
        Args:
            threads: of the processor; 0 takes what OMP_NUM_THREADS says, or all cores.

        Raises:
            UserError: files that are missing, damaged or of another kind, or a runtime that is not installed.
        """
        self.path, self._threads = os.fspath(path), threads
        self._open()

    @classmethod
    def of_model(cls, model: Any, about: About, *, threads: int = 0) -> ArtifactPredictor:
        """Of OpenVINO's model in memory; this one cannot be pickled."""
        predictor = cls.__new__(cls)
        predictor.path, predictor._threads, predictor.about, predictor.runtime = "", threads, about, "OpenVINO"
        predictor._run = _by_openvino(_compiled(lambda: model, threads or _threads_of_environment()), about)
        return predictor

    def _open(self) -> None:
        threads = self._threads or _threads_of_environment()
        if self.path.endswith(".onnx"):
            session = _onnx_session(self.path, threads)
            self.about = _about_in(session, self.path)
            self._run = _by_onnxruntime(session)
            return
        self.about = read_about(self.path)
        graph = os.path.join(self.path, self.about.graph)
        if self.about.graph == ONNX:
            self._run = _by_onnxruntime(_onnx_session(graph, threads))
        else:
            self.runtime = "OpenVINO"
            self._run = _by_openvino(_compiled(lambda: _read_openvino(graph), threads, self.about.files), self.about)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detections in each of the RGB images (H, W, 3) uint8; boxes in pixels of the image as given."""
        return [_detections(image.shape[:2], *self.arrays(image)) for image in images]

    def arrays(self, image: np.ndarray, _: object = None) -> Arrays:
        """Boxes ``x1, y1, x2, y2`` (N, 4), scores (N,) and classes (N,) in one image, best first.

        With a mask head also the masks within the boxes (N, M, M), for :func:`pasted`.
        """
        return self._run(np.ascontiguousarray(image))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_threads": self._threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _threads_of_environment() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(text) if text.isdigit() and int(text) > 0 else available_cores()


def pasted(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an object, (height, width) bool: detectron2's ``paste_masks_in_image`` of one mask.

    Args:
        mask: (M, M) probabilities of the cells of the box, bilinear between their centers, 0 outside.
        box: (4,) ``x1, y1, x2, y2`` in pixels.
        size: height and width of the image.
    """
    spans, weights = [], []
    for low, high, length, cells in zip(box[[1, 0]].tolist(), box[[3, 2]].tolist(), size, mask.shape, strict=True):
        spans.append(slice(max(math.floor(low) - 1, 0), min(math.ceil(high) + 1, length)))
        cell = (np.arange(length)[spans[-1]] + 0.5 - low) / (high - low) * cells - 0.5
        weights.append(np.maximum(1 - np.abs(cell[:, None] - np.arange(cells)), 0))
    image = np.zeros(size, dtype=bool)
    image[tuple(spans)] = weights[0] @ mask @ weights[1].T >= 0.5
    return image


def _detections(
    size: tuple[int, int], boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, masks: np.ndarray | None = None
) -> Detections:
    texts = None if masks is None else [encoded(pasted(*one, size)) for one in zip(masks, boxes, strict=True)]
    boxes = boxes.astype(np.float32)
    boxes[:, 2:] -= boxes[:, :2]
    return Detections(
        image_ids=np.zeros(len(boxes), dtype=np.int64),
        category_ids=classes.astype(np.int64),
        boxes=boxes,
        scores=scores.astype(np.float64),
        masks=texts,
        mask_sizes=None if texts is None else np.tile(np.array(size, dtype=np.int64), (len(texts), 1)),
    )


def _needed(package: str, extra: str) -> ModuleType:
    try:
        return load(package)
    except ImportError as error:
        raise UserError(f"this detector is run by {package}: pip install 'resnext-det[{extra}]'") from error


def _onnx_session(path: str, threads: int) -> Any:
    onnxruntime = _needed("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not os.path.isfile(path):
        raise UserError(f"{shown(path)}: no such file")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds come and go
        raise UserError(f"{shown(path)}: {NOT_OPENED} onnxruntime ({_first_line(error)}); export it again") from None


def _about_in(session: Any, path: str) -> About:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    if text is None:
        raise UserError(f"{shown(path)}: not a detector of resnext-det export: nothing in it says what it is")
    return parse(text, shown(path))


def _by_onnxruntime(session: Any) -> Callable[[np.ndarray], Arrays]:
    return lambda image: session.run(None, {"image": image})


def _read_openvino(graph: str) -> Any:
    openvino = needed_openvino()
    try:
        return openvino.Core().read_model(graph)
    except Exception as error:
        raise UserError(f"{shown(graph)}: {NOT_OPENED} OpenVINO ({_first_line(error)}); export it again") from None


def needed_openvino() -> ModuleType:
    """OpenVINO.

    Raises:
        UserError: it is not installed.
    """
    return _needed("openvino", "openvino")


@signal_stack_kept()
def _compiled(read: Callable[[], Any], threads: int, files: Mapping[str, str] | None = None) -> Any:
    """OpenVINO's model of the detector, compiled for this processor.

    Args:
        read: gives the model.
        files: SHA-256 of the files that it lies in. What is compiled from them is kept in the user's cache.
    """
    openvino = needed_openvino()
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if files is None:
        return core.compile_model(read(), "CPU", settings)
    kept = cache.place("openvino", files, openvino.get_version(), processor(), settings)
    if blob := cache.recall(kept):
        try:
            return core.import_model(blob, "CPU", settings)
        except RuntimeError as error:
            logger.warning("%s: OpenVINO does not take it back (%s); compiled anew", shown(kept), _first_line(error))
    compiled = core.compile_model(read(), "CPU", settings)
    stream = io.BytesIO()
    compiled.export_model(stream)
    cache.keep(kept, stream.getvalue())
    return compiled


def graph_inputs(about: About, image: np.ndarray) -> list[np.ndarray]:
    """``images``, ``sizes`` and ``original_sizes`` of the graph, for one RGB image (H, W, 3) uint8."""
    small = resized(image, about.min_size, about.max_size)
    ordered = small[:, :, ::-1] if about.channel_order == "BGR" else small
    pixels = np.ascontiguousarray(ordered.transpose(2, 0, 1)[None], dtype=np.float32)
    return [pixels, *(np.array([size[:2]], dtype=np.int64) for size in (small.shape, image.shape))]


def _by_openvino(compiled: Any, about: About) -> Callable[[np.ndarray], Arrays]:
    """Runs the detector on RGB images; every thread has a request of its own."""
    own = threading.local()

    def run(image: np.ndarray) -> Arrays:
        request = getattr(own, "request", None)
        if request is None:
            with signal_stack_kept():
                request = own.request = compiled.create_infer_request()
        boxes, scores, classes, count, *masks = request.infer(graph_inputs(about, image)).to_tuple()
        return [part[0, : int(count[0])].copy() for part in (boxes, scores, classes, *masks)]

    return run


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[-1] if lines else type(error).__name__, 160)


def text_of(about: About) -> str:
    """What an ONNX file carries under :data:`~.about.METADATA`."""
    return json.dumps(about.to_json())
