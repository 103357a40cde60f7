"""Prediction by an exported detector, in a process without torch; what every prediction says at its end."""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.coco import read_ground_truth
from ..annotations.dataset import Dataset
from ..annotations.predicted import match_files
from ..artifacts.about import sha256
from ..artifacts.running import ArtifactPredictor
from ..errors import UserError, listed
from ..files import shown
from ..inference.runtime import available_cores
from .inputs import find_inputs
from .run import DEFAULT_THRESHOLD, Summary, predict
from .tiles import Tiled

logger = logging.getLogger(__name__)


def run_artifact(
    args: Namespace,
    rank: int = 0,
    processes: int = 1,
    decide: Callable[[Callable[[], Any]], Any] = lambda function: function(),
    threads: int = 0,
) -> None:
    """Predict as the flags ask for, with the detector ``args.weights``; further arguments as :func:`predict`'s.

    Args:
        threads: as :class:`ArtifactPredictor`'s.
    """
    folder = Path(args.output)
    paths = decide(lambda: find_inputs(args.input, listed_names(args, processes), output=folder))
    predictor = ArtifactPredictor(args.weights, threads=threads)
    about = predictor.about
    category_ids, image_ids = about.category_ids, None
    if args.ids_from:
        truth = read_ground_truth(args.ids_from)
        image_ids = match_files(map(str, paths), truth.image_records(), f"--ids-from {args.ids_from}")
        category_ids = ids_of_classes(truth, about.class_names)
    threshold = threshold_of(args, about.thresholds or DEFAULT_THRESHOLD, about.class_names)
    if args.score_threshold is not None and args.score_threshold < about.model_threshold:
        logger.warning(
            "--score-threshold %g: the exported detector itself leaves out what is below %g",
            args.score_threshold, about.model_threshold,
        )  # fmt: skip
    single = args.weights.endswith(".onnx")
    identity: dict[str, object] = {"detector": sha256(args.weights)} if single else {"files": about.files}
    if args.tile:
        identity["tile"] = [args.tile, args.overlap]
    summary = predict(
        Tiled(predictor, args.tile, args.overlap) if args.tile else predictor, paths, folder,
        categories=[{"id": i, "name": name} for i, name in zip(category_ids, about.class_names, strict=True)],
        image_ids=image_ids, settings=identity, batch_size=args.batch_size, score_threshold=threshold,
        broken=args.broken, draw=not args.no_drawings, resume=args.resume, form=args.format,
        progress=None if rank else logger.info, rank=rank, processes=processes, decide=decide,
    )  # fmt: skip
    if summary is not None:
        tell(summary, float(np.min(threshold)), predictor.runtime)


def run_artifact_shared(args: Namespace) -> None:
    """:func:`run_artifact` in one process of several, which have torch and detectron2."""
    from detectron2.utils import comm

    from ..engine.processes import decided_by_main

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threads = 0 if "OMP_NUM_THREADS" in os.environ else max(1, available_cores() // comm.get_local_size())
    run_artifact(args, comm.get_rank(), comm.get_world_size(), decided_by_main, threads)


def listed_names(args: Namespace, processes: int) -> Iterable[str]:
    """The lines of standard input, which the process that started the others has read for them.

    Raises:
        UserError: they are asked for, and it has not.
    """
    if args.listed is None and "-" in args.input and processes > 1:
        raise UserError("--input -: processes of torchrun and Slurm share one standard input; give folders or patterns")
    return sys.stdin if args.listed is None else args.listed


def threshold_of(args: Namespace, own: float | list[float], class_names: Sequence[str]) -> float | list[float]:
    """``--score-threshold``, or the detector's own."""
    if args.score_threshold is not None:
        return args.score_threshold
    if isinstance(own, list):
        pairs = [f"{name} {value:.3f}" for name, value in zip(class_names, own, strict=True)]
        logger.info("thresholds of the weights, best F1 of each class: %s (--score-threshold)", listed(pairs, 10))
    return own


def tell(summary: Summary, threshold: float, device: str) -> None:
    """Log what a run found, and what it could not read."""
    if not summary.detections and summary.best is not None:
        logger.warning("nothing scores %g or more; the best score is %.3f (--score-threshold)", threshold, summary.best)
    if summary.broken:
        logger.warning(
            "skipped, cannot be read: %d, such as %s", len(summary.broken), listed(map(shown, summary.broken), 3)
        )
    logger.info(
        "%d detections in %d images on %s, %d broken and skipped; %s",
        summary.detections, summary.frames, device, len(summary.broken), summary.path,
    )  # fmt: skip


def ids_of_classes(truth: Dataset, class_names: Sequence[str]) -> list[int]:
    """The category ids that a set gives the classes.

    Raises:
        UserError: it lacks one of them.
    """
    known = dict(zip(truth.class_names, truth.category_ids.tolist(), strict=True))
    if missing := [name for name in class_names if name not in known]:
        raise UserError(
            f"--ids-from {truth.source}: has no category {listed(map(repr, missing), 5)}; the model knows "
            f"{listed(class_names, 5)}, the set {listed(truth.class_names, 5)}"
        )
    return [known[name] for name in class_names]
