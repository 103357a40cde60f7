"""``resnext-det export``: write the graphs of a detector, run them on images, compare with PyTorch."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..artifacts.about import write_about
from ..errors import UserError
from .arguments import at_least, detector_parser

logger = logging.getLogger(__name__)

FORMATS = {"onnx": "detector.onnx", "torch": "detector.pt2", "tensors": "tensors.onnx"}
"""Files by --format: pixels to boxes in ONNX, the graph between resized batches and padded boxes, the same in ONNX."""


def main(argv: Sequence[str] | None = None) -> None:
    """Export a detector with its weights; with ``--check`` also compare it on images."""
    parser = detector_parser(
        "Export a detector, C4 or on a pyramid, with or without masks, as ONNX and torch.export, and check it."
    )
    parser.add_argument("--output", default="output/export", metavar="FOLDER", help="where the files go")
    parser.add_argument("--format", choices=(*FORMATS, "all"), default="all", help="all: onnx, torch")
    parser.add_argument("--check", action="append", default=[], metavar="PATH", help="image, folder or pattern")
    parser.add_argument("--images", "--pictures", type=at_least(1), default=20, help="at most so many of them")
    parser.add_argument("--evaluate", action="store_true", help="measure accuracy on DATASETS.TEST with detector.onnx")
    args = parser.parse_args(argv)
    from detectron2.modeling import build_model

    from ..artifacts.building import write_onnx
    from ..artifacts.running import ArtifactPredictor
    from ..detection.export.artifact import about_of, measure
    from ..detection.export.comparison import check, runner, table
    from ..detection.export.graph import (
        BATCH,
        INPUTS,
        OUTPUTS,
        SIDES,
        export_onnx,
        export_program,
        least_side,
        save_program,
    )
    from ..detection.initial_weights import apply_preset, load_initial_weights
    from ..detection.prediction.detector import config_of_arguments
    from ..prediction.inputs import find_inputs
    from ..weights import ReadOnce

    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # onnxscript tells of each of its steps
    logger.setLevel(logging.INFO)
    read = ReadOnce(args.trust_pickle)
    cfg = config_of_arguments(args, read)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: give the weights of a trained detector, MODEL.WEIGHTS FILE")
    cfg = apply_preset(cfg, read)
    inputs = find_inputs(args.check)[: args.images]
    model = build_model(cfg)
    found = load_initial_weights(cfg, model, allow_new_heads=False, read=read)
    about = about_of(cfg, found, FORMATS["onnx"], "fp32")
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = ("onnx", "torch") if args.format == "all" else (args.format,)
    if args.evaluate and "onnx" not in wanted:
        raise UserError("--evaluate runs detector.onnx: give --format onnx or all")
    files = [folder / FORMATS[kind] for kind in wanted]
    program = export_program(model.eval())
    for file in files:
        if file.name == FORMATS["torch"]:
            save_program(program, file)
        elif file.name == FORMATS["tensors"]:
            export_onnx(program, file)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                core = Path(scratch, "core.onnx")
                export_onnx(program, core)
                write_onnx(core, file, about)
                if args.evaluate:
                    about.accuracy = measure(cfg, ArtifactPredictor(file), about.class_names)
                    write_onnx(core, file, about)
        about.files[file.name] = ""
        logger.info("wrote %s", file)
    agreement = {}
    for file in files if inputs else ():
        agreement[file.name] = check(about, model, runner(file), inputs)
        print(table(agreement[file.name]))
    write_about(
        folder, about,
        inputs=INPUTS, outputs=OUTPUTS[: len(program.graph_signature.user_outputs)],
        sides=(least_side(program), SIDES[1]), most_images=BATCH,
        needs={"detector.onnx": "onnxruntime", "detector.pt2": "torch, and import torchvision before it is loaded"},
        agreement={name: [asdict(o) for o in outcomes] for name, outcomes in agreement.items()},
    )  # fmt: skip
    wrong = [f"{name}: {Path(o.image).name}" for name, outs in agreement.items() for o in outs if o.unmatched]
    if wrong:
        raise UserError(f"export: {len(wrong)} images differ from PyTorch, such as {wrong[0]}; see detector.json")
