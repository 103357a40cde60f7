"""``resnext-det quantize``: write a detector in 8 bits, which starts in a second and needs neither torch nor NNCF."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.about import ONNX, OPENVINO, is_artifact, write_about
from ..errors import UserError
from ..files import atomic_path
from .arguments import at_least, detector_parser, real

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Quantize a detector with its weights; with ``--max-drop`` as far as its accuracy allows."""
    parser = detector_parser("Write a detector in 8 bits for OpenVINO or onnxruntime.")
    parser.add_argument("--calibration", nargs="+", required=True, metavar="PATH", help="images like those to come")
    parser.add_argument("--format", choices=("openvino", "onnx"), default="openvino", help="what runs it")
    parser.add_argument("--images", type=at_least(1), default=16, help="so many of them, spread evenly")
    parser.add_argument(
        "--max-drop", type=real(at_least=0), metavar="AP", help="most points of AP to lose on DATASETS.TEST"
    )
    parser.add_argument("--evaluate", action="store_true", help="measure accuracy on DATASETS.TEST")
    parser.add_argument("--output", default="output/int8", metavar="FOLDER", help="a new folder, or one to replace")
    args = parser.parse_args(argv)
    if os.path.isdir(args.output) and os.listdir(args.output) and not is_artifact(args.output):
        raise UserError(
            f"--output {args.output}: holds something else than an export, which would be replaced; name a new folder"
        )
    from detectron2.modeling import build_model

    from ..artifacts.building import openvino_model, quantized, quantized_onnx, save_openvino, write_onnx
    from ..artifacts.running import ArtifactPredictor
    from ..detection.export.artifact import about_of, calibration_of, measure
    from ..detection.export.graph import export_onnx, export_program
    from ..detection.export.quantization import accuracy_of, within
    from ..detection.initial_weights import apply_preset, load_initial_weights
    from ..detection.prediction.command import split_settings
    from ..detection.prediction.detector import config_of_arguments
    from ..prediction.inputs import find_inputs, is_video
    from ..weights import ReadOnce

    args.calibration, args.opts = split_settings(args.calibration, args.opts)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("resnext_det").setLevel(logging.INFO)
    read = ReadOnce(args.trust_pickle)
    cfg = apply_preset(config_of_arguments(args, read), read)
    paths = [path for path in find_inputs(args.calibration) if not is_video(path)]
    if len(paths) > args.images:
        paths = [paths[i * len(paths) // args.images] for i in range(args.images)]
    if not paths:
        raise UserError(f"--calibration {args.calibration[0]}: no images; int8 measures its ranges on some dozen")
    model = build_model(cfg).eval()
    found = load_initial_weights(cfg, model, allow_new_heads=False, read=read)
    in_onnx = args.format == "onnx"
    about = about_of(cfg, found, ONNX if in_onnx else OPENVINO, "int8")
    about.calibration, examples = calibration_of(about, paths, cfg.DATASETS.MAX_MEGAPIXELS)
    with tempfile.TemporaryDirectory() as scratch:
        core = Path(scratch, "core.onnx")
        export_onnx(export_program(model), core)

        def build(float_parts: Sequence[str]) -> Any:
            if not in_onnx:
                return quantized(core, examples, float_parts)
            path = Path(scratch, "_".join(["int8", *float_parts]))
            quantized_onnx(core, path, examples, float_parts)
            return path

        def accuracy(graph: Any) -> dict[str, dict]:
            if not in_onnx:
                return measure(cfg, ArtifactPredictor.of_model(graph, about), about.class_names)
            write_onnx(graph, Path(scratch, ONNX), about)
            return measure(cfg, ArtifactPredictor(Path(scratch, ONNX)), about.class_names)

        if args.max_drop is None:
            graph = build([])
            about.accuracy = accuracy(graph) if args.evaluate else {}
        else:
            exact = accuracy_of(accuracy(core if in_onnx else openvino_model(core)))
            graph, about.kept_float, results = within(build, accuracy, exact, args.max_drop)
            about.accuracy = dict(results)
            logger.info("AP %.2f in float, %.2f in 8 bits", exact, accuracy_of(results))
        with atomic_path(args.output) as folder:
            folder.mkdir()
            if in_onnx:
                write_onnx(graph, folder / ONNX, about)
            about.files = dict.fromkeys([ONNX] if in_onnx else save_openvino(graph, folder), "")
            write_about(folder, about)
    logger.info("wrote %s: predict --weights %s, or load_detector(%r)", args.output, args.output, args.output)
