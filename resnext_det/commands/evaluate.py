"""The command ``tools/evaluate.py``: COCO metrics of a result file, without a model."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..annotations import IOU_TYPES
from ..errors import UserError
from ..files import shown, write_json
from ..images import MAX_MEGAPIXELS
from .arguments import add_output_dir, at_least, check_output_dir, real

if TYPE_CHECKING:
    from ..annotations.coco import Detections
    from ..annotations.dataset import Dataset


def main(argv: Sequence[str] | None = None) -> None:
    """Print the metrics, 0 to 100, and write them where ``--out`` says."""
    parser = argparse.ArgumentParser(description="COCO metrics of a result file, equal to pycocotools.")
    parser.add_argument("--gt", required=True, metavar="FILE", help="COCO annotations")
    parser.add_argument(
        "--dt", required=True, nargs="+", metavar="FILE",
        help="COCO results, or what predict wrote; of several, each is compared with the first",
    )  # fmt: skip
    parser.add_argument("--iou-type", choices=IOU_TYPES, default="bbox")
    parser.add_argument("--out", metavar="FILE", help="results.json to write")
    add_output_dir(parser)
    parser.add_argument("--report", metavar="FILE", help="HTML page to write about the boxes")
    parser.add_argument("--label-errors", type=Path, metavar="FILE",
                        help="HTML page of probable wrong labels, and their list beside it as JSON; the files of --dt "
                        "are then folds of one set, each by a detector that was not trained on its images")  # fmt: skip
    parser.add_argument("--images", metavar="FOLDER", help="the images, for the pages")
    parser.add_argument(
        "--max-detections", type=at_least(1), help="counted of each class in an image; COCO: 100, keypoints 20"
    )
    parser.add_argument(
        "--areas", nargs="+", default=(), metavar="NAME=LOW-HIGH", help="sizes in place of COCO's, square pixels"
    )
    parser.add_argument("--samples", type=at_least(1), default=1000, help="of images, for the interval of a difference")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the samples")
    parser.add_argument(
        "--max-megapixels", type=real(above=0), default=MAX_MEGAPIXELS, help="larger images are not shown"
    )
    args = parser.parse_args(argv)
    check_output_dir(args.output_dir)
    from ..annotations.coco import Detections, read_ground_truth
    from ..annotations.comparison import compare, summary
    from ..annotations.evaluation import evaluate, log_reasons
    from ..annotations.label_errors import joined_folds
    from ..annotations.predicted import read_predictions
    from ..annotations.thresholds import match

    logging.basicConfig(format="%(message)s")
    if args.report and args.iou_type != "bbox":
        raise UserError(f"--report: the page is about boxes; leave out --iou-type {args.iou_type}")
    if args.images and not os.path.isdir(args.images):
        raise UserError(f"--images {args.images}: no such folder")
    if args.label_errors:
        _check_label_errors(args)
    if len(args.dt) > 1 and args.iou_type != "bbox":
        raise UserError(f"--dt: several files: it compares boxes; leave out --iou-type {args.iou_type}")
    options = {} if args.max_detections is None else {"max_detections": args.max_detections}
    areas = dict(map(_area, args.areas))
    truth = read_ground_truth(args.gt, with_masks=args.iou_type == "segm", folder=args.output_dir, **options)
    limit = args.max_detections
    if limit is None:
        limits = None
    else:
        limits = [limit] if args.iou_type == "keypoints" else sorted({1, 10, limit})
    predicted = [read_predictions(file, truth) for file in args.dt]
    found = [Detections.from_json(f) if one is None else one for f, one in zip(args.dt, predicted, strict=True)]
    if args.label_errors:
        args.dt, found = args.dt[:1], [joined_folds(found)]
    evaluations = [evaluate(truth, one, args.iou_type, max_detections=limits, areas=areas) for one in found]
    all_results = []
    for file, detections, evaluation in zip(args.dt, found, evaluations, strict=True):
        if len(args.dt) > 1:
            print(shown(file))
        log_reasons(evaluation, len(detections))
        results: dict[str, Any] = {args.iou_type: evaluation.results()}
        if args.iou_type == "bbox":
            matches = match(truth, detections, limit=evaluation.max_detections[-1])
            results["bbox"] |= matches.results()
            results["thresholds"] = matches.tables() if args.out else {}
        for name, value in results[args.iou_type].items():
            print(f"{shown(name):24s} {'none' if math.isnan(value) else f'{value:8.4f}'}")
        all_results.append(results)
    comparisons = {
        file: compare(
            truth, found[0], other, samples=args.samples, seed=args.seed, limit=evaluations[0].max_detections[-1]
        )
        for file, other in zip(args.dt[1:], found[1:], strict=True)
    }
    for file, differences in comparisons.items():
        print(f"{shown(file)} less {shown(args.dt[0])}: 95% of {args.samples} samples of the images")
        print("\n".join(summary(list(differences.items()))))
    if args.out:
        compared = {file: {n: asdict(d) for n, d in found.items()} for file, found in comparisons.items()}
        more = {"models": dict(zip(args.dt, all_results, strict=True)), "comparison": compared} if compared else {}
        write_json(args.out, {**all_results[0], **more})
    if args.label_errors:
        _write_label_errors(args.label_errors, truth, found[0], args.images, args.max_megapixels)
    if args.report:
        from ..reporting.report import Model, write_report  # Pillow is slow to start

        models = list(map(Model, _short(args.dt), found, evaluations))
        write_report(
            args.report,
            truth,
            found[0],
            evaluations[0],
            image_root=args.images,
            title=os.path.basename(args.gt),
            name=models[0].name,
            others=models[1:],
            max_megapixels=args.max_megapixels,
        )
        print(shown(args.report))


def _check_label_errors(args: argparse.Namespace) -> None:
    page = args.label_errors
    written = {os.path.realpath(file) for file in (page, page.with_suffix(".json"))}
    others = {os.path.realpath(file) for file in (args.gt, *args.dt, args.out, args.report) if file}
    if args.iou_type != "bbox":
        raise UserError(f"--label-errors: it goes by boxes; leave out --iou-type {args.iou_type}")
    if len(written) < 2 or written & others:
        raise UserError(
            f"--label-errors {shown(page)}: it would write over another file of this command, or its own list, "
            f"{shown(page.with_suffix('.json'))}; name a page such as errors.html"
        )


def _write_label_errors(
    page: Path, truth: Dataset, detections: Detections, images: str | None, max_megapixels: float
) -> None:
    from ..annotations.label_errors import KINDS, label_errors
    from ..reporting.suspects import write_suspects  # Pillow is slow to start

    records = label_errors(truth, detections).records(truth, detections)
    write_json(page.with_suffix(".json"), records)
    write_suspects(page, truth, records, images, max_megapixels=max_megapixels)
    counts = Counter(record["kind"] for record in records)
    print(f"probable wrong labels: {', '.join(f'{counts[kind]} {kind}' for kind in KINDS)}")
    print(shown(page))


def _area(text: str) -> tuple[str, tuple[float, float]]:
    name, _, bounds = text.rpartition("=")
    low, _, high = bounds.partition("-")
    try:
        found = float(low), float(high)
    except ValueError:
        found = 1.0, 0.0
    if not name or not 0 <= found[0] < found[1]:
        raise UserError(f"--areas {shown(text)}: give NAME=LOW-HIGH in square pixels, such as tiny=0-256")
    return name, found


def _short(files: Sequence[str]) -> list[str]:
    """The parts of the paths that tell them apart: their ends, without what all of them end in."""
    parts = [os.path.normpath(file).split(os.sep) for file in files]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {file}" for number, file in enumerate(files, start=1)]
