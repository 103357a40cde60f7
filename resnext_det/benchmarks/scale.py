"""What large data sets cost, beside the peers: CPU seconds and memory of check, training start and evaluation start.

Every figure is of a fresh process, beyond what its imports take. Sets are synthetic, ten boxes an image.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .measure import Rows, Setting

SIZES = (10_000, 30_000, 100_000)
OBJECTS = 10  # of an image
CLASSES = 80
_FOLDER = 5_000  # files of a folder

CASES = {
    "check, ours": "_check",
    "training start, ours": "_train",
    "training start from the cache, ours": "_train",
    "training start, detectron2": "_train_detectron2",
    "training start of VOC's files, ours": "_train_voc",
    "training start of VOC's files from the cache, ours": "_train_voc",
    "evaluation start, ours": "_evaluate",
    "evaluation start from the cache, ours": "_evaluate_cached",
    "evaluation start, pycocotools": "_pycocotools",
    "evaluation start, hotcoco": "_hotcoco",
    "evaluation start, faster-coco-eval": "_faster_coco_eval",
    "report, ours": "_report",
    "folder listing, ours": "_list_ours",
    "folder listing from the cache, ours": "_list_cached",
    "folder listing, torchvision": "_list_torchvision",
}
"""{row: function that measures it}, in the order in which they run."""

QUICK = ("check, ours", "evaluation start, ours", "evaluation start, pycocotools")


def make_set(folder: Path, images: int, seed: int = 0) -> None:
    """Write ``set.json`` with ten boxes an image, and the images' files, which are empty, below ``images``."""
    rng = np.random.default_rng(seed)
    folders = max(2, images // _FOLDER)
    for i in range(folders):
        (folder / "images" / f"{i:04d}").mkdir(parents=True)
    names = [f"{i * folders // images:04d}/{i:08d}.jpg" for i in range(images)]
    for name in names:
        os.close(os.open(folder / "images" / name, os.O_CREAT | os.O_WRONLY))
    with open(folder / "set.json", "w", encoding="utf-8") as file:
        file.write('{"images": [')
        file.writelines(
            f'{", " if i else ""}{{"id": {i + 1}, "file_name": "{name}", "width": 640, "height": 480}}'
            for i, name in enumerate(names)
        )
        classes = [{"id": c + 1, "name": f"class {c}"} for c in range(CLASSES)]
        file.write(f'], "categories": {json.dumps(classes)}, "annotations": [')
        for first in range(0, OBJECTS * images, 100_000):
            rows = np.arange(first, min(first + 100_000, OBJECTS * images))
            corner = rng.uniform(0, (400, 300), (len(rows), 2)).round(2)
            size = rng.uniform(4, (240, 180), (len(rows), 2)).round(2)
            area = (size[:, 0] * size[:, 1]).round(4)
            table = zip(
                (rows + 1).tolist(), (rows // OBJECTS + 1).tolist(), rng.integers(1, CLASSES + 1, len(rows)).tolist(),
                np.concatenate([corner, size], axis=1).tolist(), area.tolist(), strict=True,
            )  # fmt: skip
            file.writelines(
                f'{", " if i > 1 else ""}{{"id": {i}, "image_id": {image}, "category_id": {category}, "bbox": {box}, '
                f'"area": {value}, "iscrowd": 0}}'
                for i, image, category, box, value in table
            )
        file.write("]}\n")


def scale(setting: Setting) -> dict[str, dict]:
    """Every case of :data:`CASES` at every size, each in a process of its own (``quick``: the light ones, in this one).

    Returns:
        ``rows``: {"case, images": CPU seconds, wall seconds, MiB at most, MiB that stay (``kept``), MiB of a data
        worker's own (``worker``), all beyond the imports}; ``slopes``: {case: exponent by which CPU seconds grow with
        the number of images between the two largest sizes}; ``ratios`` of peer to ours at the largest size.
    """
    rows, sizes = Rows(setting), (100,) if setting.quick else tuple(setting.images or SIZES)
    cases = {case: CASES[case] for case in (QUICK if setting.quick else CASES)}
    for images in sizes:
        with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
            if any(f"{case}, {images} images" not in rows.rows for case in cases):
                make_set(Path(folder), images)
            for case, function in cases.items():
                peer = case.rpartition(", ")[2].replace("-", "_")
                if peer in ("ours", "torchvision") or find_spec(peer) is not None:
                    call = globals()[function] if setting.quick else partial(_in_a_process, function)
                    if case.startswith("folder listing") and not setting.quick:
                        call = partial(_listing, function)
                    rows.add(f"{case}, {images} images", partial(call, Path(folder)))
    found = {label: row for label, row in rows.rows.items() if "failed" not in row}
    return {
        "ratios": _ratios(found, sizes[-1]),
        "agreement": {"rows measured": float(len(found) == len(rows.rows))},
        "slopes": _slopes(found, sizes),
        **rows.section(),
    }


def _slopes(rows: dict, sizes: tuple[int, ...]) -> dict[str, float]:
    slopes = {}
    for case in CASES:
        pair = [rows.get(f"{case}, {images} images", {}).get("cpu_seconds", math.nan) for images in sizes[-2:]]
        if len(pair) == 2 and min(pair) > 0:
            slopes[case] = math.log(pair[1] / pair[0]) / math.log(sizes[-1] / sizes[-2])
    return slopes


def _ratios(rows: dict, images: int) -> dict[str, float]:
    ratios = {}
    for case in CASES:
        what, _, peer = case.rpartition(", ")
        ours, theirs = rows.get(f"{what}, ours, {images} images"), rows.get(f"{case}, {images} images")
        if peer != "ours" and ours and theirs:
            ratios |= {f"{case}, {key}": theirs[key] / max(ours[key], 1e-3) for key in ("cpu_seconds", "peak", "kept")}
    return ratios


def _in_a_process(function: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, function, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-200:]}")
    return json.loads(done.stdout.splitlines()[-1])


@cache
def _listings(folder: Path) -> dict[str, list[dict[str, float]]]:
    """{function: what it takes in each of five turns}, after one that warms the file system's cache."""
    functions = [function for case, function in CASES.items() if case.startswith("folder listing")]
    turns = [[_in_a_process(function, folder) for function in functions] for _ in range(6)][1:]
    return dict(zip(functions, map(list, zip(*turns, strict=True)), strict=True))


def _listing(function: str, folder: Path) -> dict[str, float]:
    turns = _listings(folder)[function]
    return {key: float(np.median([turn[key] for turn in turns])) for key in turns[0]}


def _memory() -> dict[str, float]:
    """MiB of this process: at most since the last :func:`_begin`, and now without pages of files."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {"peak": int(lines["VmHWM"].split()[0]) / 1024, "kept": int(lines["RssAnon"].split()[0]) / 1024}


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """What ``work`` takes, and what its result keeps."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of the imports is forgotten
    before, cpu, wall = _memory(), time.process_time(), time.perf_counter()
    result = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    gc.collect()
    after = _memory()
    found = {"cpu_seconds": cpu, "seconds": wall, **{key: after[key] - before[key] for key in after}}
    del result
    return found


def _check(folder: Path) -> dict[str, float]:
    from ..annotations.check import inspect_coco, report

    return measured(lambda: report(inspect_coco(folder / "set.json", folder / "images", check_images=False)))


def _train_voc(folder: Path) -> dict[str, float]:
    """Of as many XML files as there are images, ten boxes in each; the first call makes them."""
    voc = folder / "voc"
    if not voc.is_dir():
        rng = np.random.default_rng(0)
        corners = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
        for kind in ("Annotations", "JPEGImages"):
            (voc / kind).mkdir(parents=True)
        for image in sorted((folder / "images").glob("*/*.jpg")):
            low = rng.integers(1, 300, (OBJECTS, 2))
            boxes = np.concatenate([low, low + rng.integers(4, 180, low.shape)], axis=1)
            objects = "".join(
                f"<object><name>class {name}</name><bndbox>{corners.format(*box)}</bndbox></object>"
                for name, box in zip(rng.integers(1, CLASSES + 1, OBJECTS).tolist(), boxes.tolist(), strict=True)
            )
            size = "<size><width>640</width><height>480</height></size>"
            (voc / "JPEGImages" / image.name).touch()
            (voc / "Annotations" / f"{image.stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return _train(folder, voc, voc / "JPEGImages")


def _train(folder: Path, labels: Path | None = None, images: Path | None = None) -> dict[str, float]:
    from detectron2.config import get_cfg

    from ..detection.config import add_resnext_config
    from ..detection.data.checked_sets import check_sets_from_config
    from ..detection.data.loaders import register_sets, train_loader_from_config

    cfg = get_cfg()
    add_resnext_config(cfg)
    cfg.merge_from_list([
        "DATASETS.REGISTER", [["scale", str(labels or folder / "set.json"), str(images or folder / "images")]],
        "DATASETS.TRAIN", ("scale",), "DATASETS.TEST", (), "DATASETS.CHECK", "json", "DATALOADER.NUM_WORKERS", 1,
        "OUTPUT_DIR", str(folder / "output"), "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES,
    ])  # fmt: skip
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    register_sets(cfg.DATASETS.REGISTER)
    loaders = []

    def start() -> object:
        loaders.append(train_loader_from_config(cfg, 0, 0, sets=check_sets_from_config(cfg, training=True)))
        return loaders[0]

    return measured(start) | _of_a_worker(loaders[0].dataset, lambda: iter(loaders[0]))


def _of_a_worker(dataset: Any, batches: Callable[[], Iterator]) -> dict[str, float]:
    """MiB that a data worker has for itself after some batches; the images are not read."""
    from torch.multiprocessing import active_children

    dataset.mapper = _same
    alive = batches()
    for _ in range(200):
        next(alive)
    (worker,) = active_children()
    text = Path(f"/proc/{worker.pid}/smaps_rollup").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return {"worker": int(lines["Private_Dirty"].split()[0]) / 1024}


def _same(record: dict) -> dict:
    return record


def _train_detectron2(folder: Path) -> dict[str, float]:
    from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
    from detectron2.data.datasets import register_coco_instances
    from detectron2.data.samplers import TrainingSampler
    from torch.utils.data import DataLoader

    register_coco_instances("scale", {}, str(folder / "set.json"), str(folder / "images"))
    found: list[Any] = []

    def start() -> object:
        found.append(MapDataset(DatasetFromList(get_detection_dataset_dicts(["scale"]), copy=False), _same))
        return found[0]

    numbers = measured(start)
    loader = DataLoader(found[0], sampler=TrainingSampler(len(found[0]), seed=0), num_workers=1, collate_fn=list)
    return numbers | _of_a_worker(found[0], lambda: iter(loader))


def _evaluate(folder: Path) -> dict[str, float]:
    from ..annotations.coco import read_ground_truth

    return measured(lambda: read_ground_truth(folder / "set.json"))


def _evaluate_cached(folder: Path) -> dict[str, float]:
    from ..annotations.coco import read_ground_truth

    read_ground_truth(folder / "set.json", folder=folder / "output")
    return measured(lambda: read_ground_truth(folder / "set.json", folder=folder / "output"))


def _pycocotools(folder: Path) -> dict[str, float]:
    from pycocotools.coco import COCO

    return _quietly(lambda: COCO(str(folder / "set.json")))


def _hotcoco(folder: Path) -> dict[str, float]:
    from hotcoco import COCO

    return _quietly(lambda: COCO(str(folder / "set.json")))


def _faster_coco_eval(folder: Path) -> dict[str, float]:
    from faster_coco_eval import COCO

    return _quietly(lambda: COCO(str(folder / "set.json")))


def _quietly(work: Callable[[], Any]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        return measured(work)


def _report(folder: Path) -> dict[str, float]:
    """Kinds of error, curves and the page, of as many detections as there are objects; without images."""
    from ..annotations.coco import Detections, read_ground_truth
    from ..annotations.evaluation import evaluate
    from ..reporting.report import write_report

    truth = read_ground_truth(folder / "set.json")
    rng = np.random.default_rng(0)
    boxes = truth.boxes * rng.uniform(0.8, 1.25, truth.boxes.shape)
    ids = truth.image_ids[truth.image], truth.category_ids[truth.category]
    found = Detections(*ids, boxes, rng.random(len(boxes)))
    evaluation = evaluate(truth, found)
    return measured(lambda: write_report(folder / "report.html", truth, found, evaluation))


def _list_ours(folder: Path) -> dict[str, float]:
    from ..classification.data import ImageFolder

    return measured(lambda: ImageFolder(str(folder / "images")))


def _list_cached(folder: Path) -> dict[str, float]:
    from ..classification.data import ImageFolder

    ImageFolder(str(folder / "images"), folder=folder / "output")
    return measured(lambda: ImageFolder(str(folder / "images"), folder=folder / "output"))


def _list_torchvision(folder: Path) -> dict[str, float]:
    from torchvision.datasets import ImageFolder

    return measured(lambda: ImageFolder(str(folder / "images")))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
