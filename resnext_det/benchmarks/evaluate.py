"""How long COCO evaluation takes, and how much memory, beside pycocotools, on made-up detections of COCO's size."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..annotations.coco import Detections
from ..annotations.evaluation import evaluate_detections
from .measure import Setting


def made_up_set(images: int, detections: int, classes: int, seed: int) -> tuple[dict, Detections]:
    """Ground truth with about seven objects an image, and detections of which some fit them; boxes in pixels."""
    rng = np.random.default_rng(seed)
    count = 7 * images
    where = rng.integers(0, images, count)
    labels = rng.integers(0, classes, count)
    boxes = np.concatenate([rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(2, 5.5, (count, 2)))], axis=1)
    truth = {
        "images": [{"id": i, "height": 640, "width": 640} for i in range(images)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(classes)],
        "annotations": [
            {"id": i + 1, "image_id": int(where[i]), "category_id": int(labels[i]), "bbox": boxes[i].tolist(),
             "area": float(boxes[i, 2] * boxes[i, 3]), "iscrowd": int(i % 80 == 79)}
            for i in range(count)
        ],
    }  # fmt: skip
    pick = rng.integers(0, count, detections)
    near = boxes[pick] + rng.normal(0, 0.15, (detections, 4)) * boxes[pick][:, [2, 3, 2, 3]]
    near[:, 2:] = np.abs(near[:, 2:])
    confused = rng.random(detections) < 0.7
    found = np.where(confused, rng.integers(0, classes, detections), labels[pick])
    return truth, Detections(where[pick], found, near, rng.random(detections).round(4))


def coco_evaluation(setting: Setting) -> dict[str, dict]:
    """Evaluate the same files by :func:`~resnext_det.annotations.evaluation.evaluate_detections` and by pycocotools.

    5,000 images, 475,000 detections, 80 classes; each side in a process of its own (``quick``: a hundredth, in this
    one), from the files on the disk to the numbers.

    Returns:
        ``ratios`` of seconds and of CPU seconds (less disturbed by other work on the machine), ``agreement``: 1 if all
        twelve numbers are the same in every digit, ``seconds``, ``cpu_seconds`` and ``peak_mib`` (of the whole process,
        Python and numpy included) of both sides.
    """
    truth, found = made_up_set(50, 4750, 8, seed=0) if setting.quick else made_up_set(5000, 475_000, 80, seed=0)
    call = _measured if setting.quick else _in_a_process
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "truth.json", Path(folder) / "detections.json"
        files[0].write_text(json.dumps(truth), encoding="utf-8")
        found.write_json(files[1])
        del truth, found
        sides = {"ours": call(_ours, *files), "pycocotools": call(_pycocotools, *files)}
    table = {key: {name: cost[key] for name, (cost, _) in sides.items()} for key in sides["ours"][0]}
    return {
        "ratios": {key: table[key]["pycocotools"] / table[key]["ours"] for key in ("seconds", "cpu_seconds")},
        "agreement": {"all twelve numbers equal": float(sides["ours"][1] == sides["pycocotools"][1])},
        **table,
    }


def _in_a_process(work: Callable, *args: Path) -> tuple[dict, list[float]]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measured, (work, *args))


def _measured(work: Callable, *args: Path) -> tuple[dict, list[float]]:
    start, cpu_start = time.perf_counter(), time.process_time()
    numbers = work(*args)
    cpu_seconds, seconds = time.process_time() - cpu_start, time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mib": peak}, numbers


def _ours(truth: Path, detections: Path) -> list[float]:
    return list(evaluate_detections(truth, detections).values())[:12]


def _pycocotools(truth: Path, detections: Path) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO(str(truth))
        evaluation = COCOeval(table, table.loadRes(str(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value * 100) for value in evaluation.stats]
