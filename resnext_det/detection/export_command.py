"""The command ``tools/export.py``: write the graphs, run them on pictures, compare with PyTorch."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from torch import nn

from ..engine.cli import TRUST_PICKLE, at_least
from ..errors import UserError
from ..files import write_json
from .export import INPUTS, OUTPUTS, export_onnx, export_program
from .initial_weights import apply_preset, load_initial_weights
from .predict import categories_of, find_inputs, read_picture
from .train import setup

logger = logging.getLogger(__name__)

FORMATS = {"onnx": "detector.onnx", "torch": "detector.pt2"}
Run = Callable[[np.ndarray, tuple[int, int]], list[np.ndarray]]
"""Picture (3, H, W) float32 as the detector takes it, (height, width) of the original -> boxes, scores, classes."""


@dataclass
class Agreement:
    """An exported detector against the model itself on one picture.

    Attributes:
        picture: its file.
        size: (height, width) that the graph saw.
        detections, exported: how many each found.
        box: largest difference of a coordinate, in pixels of the original picture.
        score: largest difference of a score.
        unmatched: detections of either that the other has not, scores within 1e-3 of the threshold aside.
    """

    picture: str
    size: tuple[int, int]
    detections: int
    exported: int
    box: float
    score: float
    unmatched: int


def runner(path: Path) -> Run:
    """Runs an exported file; no detectron2 in it."""
    if path.suffix == ".onnx":
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("running ONNX files needs onnxruntime: pip install 'resnext-det[export]'") from error
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def call(*inputs: np.ndarray) -> list[np.ndarray]:
            return session.run(list(OUTPUTS), dict(zip(INPUTS, inputs, strict=True)))
    else:
        program = torch.export.load(str(path)).module()

        def call(*inputs: np.ndarray) -> list[np.ndarray]:
            with torch.no_grad():
                return [output.numpy() for output in program(*map(torch.from_numpy, inputs))]

    def run(picture: np.ndarray, original: tuple[int, int]) -> list[np.ndarray]:
        sizes = np.array([picture.shape[1:]], dtype=np.int64), np.array([original], dtype=np.int64)
        boxes, scores, classes, count = call(picture[None], *sizes)
        return [part[0, : int(count[0])] for part in (boxes, scores, classes)]

    return run


def compare(expected: Sequence[np.ndarray], found: Sequence[np.ndarray], threshold: float) -> tuple[float, float, int]:
    """(largest difference of a coordinate, of a score, number without a partner) of (boxes, scores, classes) each.

    Partners are the nearest boxes of the same class, less than two pixels apart: ranks may swap where scores tie.
    """
    (boxes, scores, classes), (own_boxes, own_scores, own_classes) = expected, found
    box = score = 0.0
    unmatched, free = 0, np.ones(len(own_boxes), dtype=bool)
    for i in range(len(boxes)):
        distance = np.abs(own_boxes - boxes[i]).max(axis=1, initial=0)
        distance[~free | (own_classes != classes[i])] = math.inf
        if len(distance) and distance.min() < 2:
            partner = int(distance.argmin())
            free[partner] = False
            box, score = max(box, float(distance[partner])), max(score, abs(float(scores[i] - own_scores[partner])))
        else:
            unmatched += bool(scores[i] > threshold + 1e-3)
    return box, score, unmatched + int((own_scores[free] > threshold + 1e-3).sum())


@torch.no_grad()
def check(cfg, model: nn.Module, run: Run, pictures: Sequence[Path]) -> list[Agreement]:
    """Run both on every picture, resized as in testing."""
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    outcomes = []
    for path in pictures:
        pixels = read_picture(path)
        ordered = pixels[:, :, ::-1] if cfg.INPUT.FORMAT == "BGR" else pixels
        image = resize.get_transform(ordered).apply_image(ordered).transpose(2, 0, 1)
        image = np.ascontiguousarray(image, dtype=np.float32)
        height, width = pixels.shape[:2]
        found = run(image, (height, width))
        model.eval()
        (output,) = model([{"image": torch.from_numpy(image), "height": height, "width": width}])
        instances = output["instances"].to("cpu")
        expected = [part.numpy() for part in (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)]
        box, score, unmatched = compare(expected, found, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
        counts = len(expected[0]), len(found[0])
        outcomes.append(Agreement(str(path), image.shape[1:], *counts, box, score, unmatched))
    return outcomes


def table(outcomes: Sequence[Agreement]) -> str:
    """One line a picture, and the largest differences."""
    lines = [
        f"{'picture':30} {'size':>11} {'PyTorch':>8} {'exported':>9} {'box, px':>9} {'score':>9} {'unmatched':>10}"
    ]
    for o in outcomes:
        size = f"{o.size[0]}x{o.size[1]}"
        lines.append(
            f"{Path(o.picture).name[-30:]:30} {size:>11} {o.detections:8} {o.exported:9} {o.box:9.1e} {o.score:9.1e} "
            f"{o.unmatched:7}"
        )
    worst = max((o.box for o in outcomes), default=0), max((o.score for o in outcomes), default=0)
    detections, unmatched = sum(o.detections for o in outcomes), sum(o.unmatched for o in outcomes)
    lines.append(
        f"{len(outcomes)} pictures, {detections} detections, {unmatched} differ; boxes within {worst[0]:.1e} pixels, "
        f"scores within {worst[1]:.1e}"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Export a detector with its weights; with ``--check`` also compare it on pictures."""
    parser = argparse.ArgumentParser(description="Export a C4 detector as ONNX and torch.export, and check it.")
    parser.add_argument("--config-file", required=True, metavar="FILE", help="YAML: a path, or a name in this package")
    parser.add_argument("--output", default="output/export", metavar="FOLDER", help="where the files go")
    parser.add_argument("--format", choices=(*FORMATS, "all"), default="all")
    parser.add_argument("--check", action="append", default=[], metavar="PATH", help="picture, folder or pattern")
    parser.add_argument("--pictures", type=at_least(1), default=20, help="at most so many of them")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the file")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # onnxscript tells of each of its steps
    logger.setLevel(logging.INFO)
    cfg = setup(args.config_file, args.opts)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: give the weights of a trained detector, MODEL.WEIGHTS FILE")
    cfg = apply_preset(cfg, trust_pickle=args.trust_pickle)
    pictures = find_inputs(args.check)[: args.pictures]
    model = build_model(cfg)
    found = load_initial_weights(cfg, model, allow_new_heads=False, trust_pickle=args.trust_pickle)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for kind, name in FORMATS.items() if args.format in (kind, "all")]
    program = export_program(model.eval())
    agreement = {}
    for file in files:
        if file.suffix == ".onnx":
            export_onnx(program, file)
        else:
            torch.export.save(program, str(file))
        logger.info("wrote %s", file)
        if pictures:
            agreement[file.name] = check(cfg, model, runner(file), pictures)
            print(table(agreement[file.name]))
    category_ids, class_names = categories_of(cfg, found.get("class_names", ()))
    about = {
        "inputs": INPUTS, "outputs": OUTPUTS, "channel_order": cfg.INPUT.FORMAT, "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST, "class_names": class_names, "category_ids": category_ids,
        "agreement": {name: [asdict(o) for o in outcomes] for name, outcomes in agreement.items()},
    }  # fmt: skip
    write_json(folder / "detector.json", about)
    wrong = [f"{name}: {Path(o.picture).name}" for name, outs in agreement.items() for o in outs if o.unmatched]
    if wrong:
        raise UserError(f"export: {len(wrong)} pictures differ from PyTorch, such as {wrong[0]}; see detector.json")
