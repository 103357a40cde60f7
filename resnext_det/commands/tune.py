"""``resnext-det tune``: measure the ways to run a detector here, and write the fastest that is good enough."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .arguments import at_least, detector_parser, real


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``OUTPUT/detector``, ``tune.json`` and ``pareto.png``."""
    about = "Time and AP of a C4 detector by type, backend, regions, image size, threads and batch, on DATASETS.TEST."
    parser = detector_parser(about)
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="images like those to come; int8 needs them")
    parser.add_argument(
        "--max-drop", type=real(at_least=0), default=0.5, metavar="AP", help="most points of AP to lose"
    )
    parser.add_argument(
        "--regions",
        nargs="+",
        type=real(above=0, at_most=1),
        default=[1, 0.3, 0.1],
        help="parts of the configured number",
    )
    parser.add_argument(
        "--sizes", nargs="+", type=real(above=0, at_most=1), default=[1, 0.75], help="parts of INPUT.MIN_SIZE_TEST"
    )
    parser.add_argument("--threads", nargs="+", type=at_least(1), help="by default as many as now")
    parser.add_argument("--batches", nargs="+", type=at_least(1), default=[1], help="images at a time")
    parser.add_argument("--images", type=at_least(1), default=8, help="of DATASETS.TEST, to measure time on")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a machine that is shared")
    parser.add_argument("--output", default="output/tuned", metavar="FOLDER")
    args = parser.parse_args(argv)
    import torch
    from tabulate import tabulate

    from ..detection.initial_weights import apply_preset
    from ..detection.prediction.command import split_settings
    from ..detection.prediction.detector import config_of_arguments
    from ..detection.tuning import choices_of, front, tune
    from ..inference.precision import multiplies_bf16
    from ..prediction.inputs import find_inputs, is_video
    from ..weights import ReadOnce

    args.calibration, args.opts = split_settings(args.calibration or [], args.opts)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("resnext_det.detection.tuning").setLevel(logging.INFO)
    read = ReadOnce(args.trust_pickle)
    cfg = apply_preset(config_of_arguments(args, read), read)
    if cfg.MODEL.DEVICE != "cpu":
        raise UserError(f"MODEL.DEVICE {cfg.MODEL.DEVICE}: tune measures processors; set MODEL.DEVICE cpu")
    examples = [path for path in find_inputs(args.calibration) if not is_video(path)] if args.calibration else []
    dtypes = ["fp32", *(["bf16"] if multiplies_bf16("cpu") else []), *(["int8"] if examples else [])]
    threads = args.threads or [torch.get_num_threads()]
    choices = choices_of(cfg, dtypes, args.regions, args.sizes, threads, args.batches)
    rows, best = tune(
        cfg, choices, Path(args.output), calibration=examples[:: max(1, len(examples) // 16)], images=args.images,
        max_drop=args.max_drop, cpu_clock=args.clock == "cpu", read=read,
    )  # fmt: skip
    on_front = front(rows)
    table = [{**row.to_json(), "": ("chosen " if row is best else "") + "*" * (row in on_front)} for row in rows]
    print(tabulate(table, headers="keys", tablefmt="pipe", floatfmt=".3f"))
    print(f"wrote {args.output}/detector: predict --weights {args.output}/detector; tune.json, pareto.png; *: no other "
          "is faster and more accurate")  # fmt: skip
