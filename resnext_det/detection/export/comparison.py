"""The command ``tools/export.py``: write the graphs, run them on images, compare with PyTorch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...artifacts.about import ONNX, About
from ...artifacts.running import ArtifactPredictor, pasted
from ...errors import UserError
from ...prediction.inputs import read_rgb
from ..data.mapper import ResizeShortestEdge
from .graph import INPUTS, SIDES, least_side

logger = logging.getLogger(__name__)

Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]
"""Pixels (H, W, 3) uint8 in RGB, and the same image (3, H', W') float32 as the detector takes it -> boxes, scores,
classes, and masks within the boxes where the detector has them."""


@dataclass
class Agreement:
    """An exported detector against the model itself on one image.

    Attributes:
        image: its file.
        size: (height, width) that the graph saw.
        detections, exported: how many each found.
        box: largest difference of a coordinate, in pixels of the original image.
        score: largest difference of a score.
        unmatched: detections of one without a counterpart in the other, except scores within 1e-3 of the threshold;
            and those whose masks differ in more than a pixel and a hundredth of theirs.
        mask: pixels that differ between the masks of counterparts, all together.
    """

    image: str
    size: tuple[int, int]
    detections: int
    exported: int
    box: float
    score: float
    unmatched: int
    mask: int


def runner(path: Path) -> Run:
    """Runs an exported file; no detectron2 in it."""
    if path.name == ONNX:
        return ArtifactPredictor(path).arrays
    if path.suffix == ".onnx":
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("running ONNX files needs onnxruntime: pip install 'resnext-det[export]'") from error
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def call(*inputs: np.ndarray) -> list[np.ndarray]:
            return session.run(None, dict(zip(INPUTS, inputs, strict=True)))
    else:
        import torchvision  # noqa: F401  (its NMS is one of the program's operators)

        loaded = torch.export.load(str(path))
        program, least = loaded.module(), least_side(loaded)

        def call(*inputs: np.ndarray) -> list[np.ndarray]:
            height, width = inputs[0].shape[2:]
            if min(height, width) < least or max(height, width) > SIDES[1]:
                raise UserError(
                    f"{path}: an image of {height}x{width} once resized; it takes sides of {least} to {SIDES[1]} "
                    "pixels; set INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST for that"
                )
            with torch.no_grad():
                return [output.numpy() for output in program(*map(torch.from_numpy, inputs))]

    def run(pixels: np.ndarray, image: np.ndarray) -> Sequence[np.ndarray]:
        sizes = np.array([image.shape[1:]], dtype=np.int64), np.array([pixels.shape[:2]], dtype=np.int64)
        boxes, scores, classes, count, *masks = call(image[None], *sizes)
        return [part[0, : int(count[0])] for part in (boxes, scores, classes, *masks)]

    return run


def compare(
    expected: Sequence[np.ndarray], found: Sequence[np.ndarray], threshold: float
) -> tuple[float, float, int, int]:
    """Largest difference of a coordinate, of a score, number without a partner, differing pixels of masks.

    Partners are the nearest boxes of the same class, less than two pixels apart: ranks may swap where scores tie.

    Args:
        expected, found: boxes, scores and classes; with masks also these, (N, H, W) bool and (N, M, M) in the boxes.
    """
    (boxes, scores, classes, *masks), (own_boxes, own_scores, own_classes, *own_masks) = expected, found
    box = score = 0.0
    pixels = 0
    unmatched, free = 0, np.ones(len(own_boxes), dtype=bool)
    for i in range(len(boxes)):
        distance = np.abs(own_boxes - boxes[i]).max(axis=1, initial=0)
        distance[~free | (own_classes != classes[i])] = math.inf
        if len(distance) and distance.min() < 2:
            partner = int(distance.argmin())
            free[partner] = False
            box, score = max(box, float(distance[partner])), max(score, abs(float(scores[i] - own_scores[partner])))
            if masks:
                mask = masks[0][i]
                differ = int((mask != pasted(own_masks[0][partner], own_boxes[partner], mask.shape)).sum())
                pixels += differ
                unmatched += differ > max(1, 0.01 * mask.sum())
        else:
            unmatched += bool(scores[i] > threshold + 1e-3)
    return box, score, unmatched + int((own_scores[free] > threshold + 1e-3).sum()), pixels


@torch.no_grad()
def check(about: About, model: nn.Module, run: Run, images: Sequence[Path]) -> list[Agreement]:
    """Run both on every image, resized as in testing."""
    resize = ResizeShortestEdge([about.min_size] * 2, about.max_size)
    outcomes = []
    for path in images:
        pixels = read_rgb(path)
        ordered = pixels[:, :, ::-1] if about.channel_order == "BGR" else pixels
        image = resize.get_transform(ordered).apply_image(ordered).transpose(2, 0, 1)
        image = np.ascontiguousarray(image, dtype=np.float32)
        height, width = pixels.shape[:2]
        found = run(pixels, image)
        model.eval()
        (output,) = model([{"image": torch.from_numpy(image), "height": height, "width": width}])
        instances = output["instances"].to("cpu")
        expected = [part.numpy() for part in (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)]
        if instances.has("pred_masks"):
            expected.append(instances.pred_masks.numpy())
        counts = len(expected[0]), len(found[0])
        differences = compare(expected, found, about.model_threshold)
        outcomes.append(Agreement(str(path), image.shape[1:], *counts, *differences))
    return outcomes


def table(outcomes: Sequence[Agreement]) -> str:
    """One line an image, and the largest differences."""
    lines = [f"{'image':30} {'size':>11} {'PyTorch':>8} {'exported':>9} {'box, px':>9} {'score':>9} {'unmatched':>10}"]
    for o in outcomes:
        size = f"{o.size[0]}x{o.size[1]}"
        lines.append(
            f"{Path(o.image).name[-30:]:30} {size:>11} {o.detections:8} {o.exported:9} {o.box:9.1e} {o.score:9.1e} "
            f"{o.unmatched:7}"
        )
    worst = max((o.box for o in outcomes), default=0), max((o.score for o in outcomes), default=0)
    detections, unmatched = sum(o.detections for o in outcomes), sum(o.unmatched for o in outcomes)
    masks = sum(o.mask for o in outcomes)
    lines.append(
        f"{len(outcomes)} images, {detections} detections, {unmatched} differ; boxes within {worst[0]:.1e} pixels, "
        f"scores within {worst[1]:.1e}" + (f"; {masks} pixels of masks differ" if masks else "")
    )
    return "\n".join(lines)
