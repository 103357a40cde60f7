"""Prediction on a Ray cluster: Ray Data's workers look at the images, and the driver writes what ``predict`` writes.

    resnext_det.ray.predict("output/int8", ["photos/"], "output/predictions", workers=8)

The workers must see the images, and the files of an export, under the same paths as the driver. They write nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from .artifacts.about import is_artifact, read_about, sha256
from .errors import UserError
from .prediction.inputs import find_inputs
from .prediction.loading import load_detector
from .prediction.run import Summary, Work
from .prediction.run import predict as run


def predict(
    weights: str | os.PathLike,
    inputs: Iterable[str],
    output: str | os.PathLike,
    *,
    workers: int = 1,
    cpus: float = 1,
    batch_size: int = 1,
    score_threshold: float | None = None,
    broken: str = "error",
    resume: bool = False,
    form: str = "coco",
) -> Summary:
    """``resnext-det predict --no-drawings``, with the same bytes, resumed in the same way.

    Args:
        weights: of a trained detector, or an export.
        inputs: files, folders and patterns.
        output: a folder that the driver alone writes.
        workers: actors, each with the detector in its memory.
        cpus: of each.

    The others are those of :func:`resnext_det.prediction.run.predict`.

    Raises:
        UserError: as there; Ray is not installed.
    """
    try:
        data = import_module("ray.data")
    except ImportError as error:
        raise UserError("resnext_det.ray needs Ray: pip install 'resnext-det[ray]'") from error
    detector = load_detector(weights, score_threshold=score_threshold)
    folder = is_artifact(weights) and os.path.isdir(weights)

    def elsewhere(work: Work, units: Mapping[int, Sequence[Path]]) -> Iterator[tuple[int, list[dict]]]:
        rows = data.from_items([{"unit": n, "paths": [str(path) for path in units[n]]} for n in units])
        rows.context.execution_options.preserve_order = True
        found = rows.map(_Worker, fn_constructor_args=(work,), concurrency=workers, num_cpus=cpus)
        for row in found.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield row["unit"], json.loads(row["records"])

    pairs = zip(detector.category_ids, detector.class_names, strict=True)
    summary = run(
        detector.predictor, find_inputs(inputs, output=output), Path(output),
        categories=[{"id": i, "name": name} for i, name in pairs],
        settings={"files": read_about(weights).files if folder else sha256(weights)}, batch_size=batch_size,
        score_threshold=detector.score_threshold, broken=broken, draw=False, resume=resume, form=form,
        max_megapixels=detector.max_megapixels, elsewhere=elsewhere,
    )  # fmt: skip
    assert summary is not None  # one process writes
    return summary


class _Worker:
    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, row: dict) -> dict:
        try:
            records = list(self._work.records([Path(path) for path in row["paths"]]))
        except UserError as error:  # Ray would wrap it
            return {"unit": row["unit"], "records": "", "error": str(error)}
        return {"unit": row["unit"], "records": json.dumps(records), "error": ""}
