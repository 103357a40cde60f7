"""What a detector costs and finds in each way of running it on this machine: time against AP.

Time depends on all of a :class:`Choice`, AP on its type, regions and size alone. The backends of a type differ by
rounding, so only the faster one of each is followed further.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from ..artifacts.about import OPENVINO, About, write_about
from ..artifacts.building import quantized, save_openvino
from ..artifacts.running import ArtifactPredictor
from ..files import atomic_path, read_state, write_json
from ..inference.runtime import processor
from ..prediction.inputs import spread
from ..prediction.run import Detect
from ..reporting.curves import save_figure
from ..reporting.pareto import pareto_figure
from ..weights import Checkpoint, Reader, read_checkpoint, save_checkpoint
from .data.loaders import known_sets, register_sets
from .export.artifact import about_of, calibration_of, measure
from .export.graph import export_onnx, export_program
from .export.quantization import accuracy_of
from .initial_weights import load_initial_weights, weights_of
from .optimize import optimize_for_inference
from .prediction.detector import Predictor, categories_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A way to run a detector.

    Attributes:
        dtype, backend: as :func:`~resnext_det.detection.optimize_for_inference` takes them; int8 is what
            ``resnext-det quantize`` writes.
        regions: MODEL.RPN.POST_NMS_TOPK_TEST.
        min_size: INPUT.MIN_SIZE_TEST; MAX_SIZE_TEST changes in proportion.
        threads: of the processor.
        batch: images at a time.
    """

    dtype: str
    backend: str
    regions: int
    min_size: int
    threads: int
    batch: int


@dataclass
class Row:
    """A choice, its seconds an image, the median, and its AP in percent."""

    choice: Choice
    seconds: float
    ap: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self.choice), "seconds": self.seconds, "AP": self.ap}


def rows_of(
    choices: Sequence[Choice],
    load: Callable[[Choice], Detect],
    seconds: Callable[[Detect, int], float],
    accuracy: Callable[[Detect], float],
    before: Mapping[Choice, Row],
) -> Iterator[Row]:
    """Measure the choices, a row as soon as it is known. Later ones of a type's slower backend are left out.

    Args:
        choices: of :func:`choices_of`.
        load: makes a choice run.
        seconds: an image's, in batches of a number.
        accuracy: AP in percent.
        before: rows of an earlier call.
    """
    first: dict[tuple[str, int], dict[str, float]] = {}
    known: dict[tuple[str, int, int], float] = {}
    for choice in choices:
        times = first.setdefault((choice.dtype, choice.threads), {})
        if choice.backend in times and choice.backend != min(times, key=times.__getitem__):
            continue
        place = choice.dtype, choice.regions, choice.min_size
        row = before.get(choice)
        if row is None:
            detect = load(choice)
            found = seconds(detect, choice.batch)
            row = Row(choice, found, known[place] if place in known else accuracy(detect))
        known[place] = row.ap
        times.setdefault(choice.backend, row.seconds)
        yield row


def row_of(values: Mapping[str, Any]) -> Row:
    """A row from its plain values."""
    return Row(Choice(*(values[f.name] for f in fields(Choice))), values["seconds"], values["AP"])


def choices_of(
    cfg: CfgNode,
    dtypes: Sequence[str],
    regions: Iterable[float],
    sizes: Iterable[float],
    threads: Iterable[int],
    batches: Sequence[int],
) -> list[Choice]:
    """All combinations; ``regions`` and ``sizes`` are parts of what ``cfg`` says, the first is the most exact."""
    full, side = cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.INPUT.MIN_SIZE_TEST
    ways = [(t, b) for t in dtypes for b in (("openvino",) if t == "int8" else ("torch", "openvino"))]
    numbers = sorted({max(1, round(full * part)) for part in regions}, reverse=True)
    lengths = sorted({round(side * part) for part in sizes}, reverse=True)
    rest = [(s, n, b) for s, n, b in product(lengths, sorted(set(threads)), sorted(set(batches)))]
    found = [
        Choice(dtype, backend, r, s, n, b)
        for dtype, backend in ways
        for r in numbers
        for s, n, b in rest
        if dtype != "int8" or b == 1  # its graph takes one image
    ]

    def begins(choice: Choice) -> bool:
        return (choice.regions, choice.min_size, choice.batch) == (numbers[0], lengths[0], min(batches))

    # Both backends of a type are compared on the whole before one is followed.
    return [c for dtype in dtypes for first in (True, False) for c in found if (c.dtype, begins(c)) == (dtype, first)]


def config_of_choice(cfg: CfgNode, choice: Choice) -> CfgNode:
    """``cfg`` with what the choice sets."""
    tuned = cfg.clone()
    tuned.defrost()
    tuned.MODEL.RPN.POST_NMS_TOPK_TEST = choice.regions
    tuned.INPUT.MAX_SIZE_TEST = round(cfg.INPUT.MAX_SIZE_TEST * choice.min_size / max(1, cfg.INPUT.MIN_SIZE_TEST))
    tuned.INPUT.MIN_SIZE_TEST = choice.min_size
    if choice.dtype != "int8":
        tuned.MODEL.RESNEXT.INFERENCE_DTYPE, tuned.MODEL.RESNEXT.INFERENCE_BACKEND = choice.dtype, choice.backend
    tuned.freeze()
    return tuned


class Loader:
    """Makes choices run; neighbors that differ in size and batch alone share a network.

    Attributes:
        about, graph: of the last int8 detector.
    """

    def __init__(self, cfg: CfgNode, calibration: Sequence[Path], read: Reader = read_checkpoint) -> None:
        self._cfg, self._calibration, self._read = cfg, calibration, read
        self._made: tuple[Any, Any] = (None, None)
        self.about: About | None = None
        self.graph: Any = None

    def __call__(self, choice: Choice) -> Detect:
        """The detector that ``choice`` stands for."""
        torch.set_num_threads(choice.threads)
        cfg = config_of_choice(self._cfg, choice)
        key = replace(choice, min_size=0, batch=0)
        if self._made[0] != key:
            self._made = (None, None)  # its memory is free before the next one comes
            self._made = key, self._make(cfg, choice)
        if choice.dtype == "int8":
            predictor = self._made[1]
            predictor.about.min_size, predictor.about.max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
            return predictor
        sizes = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
        return Predictor(self._made[1], **sizes, channel_order=cfg.INPUT.FORMAT)

    def _make(self, cfg: CfgNode, choice: Choice) -> Any:
        model = build_model(cfg).eval()
        found = load_initial_weights(cfg, model, allow_new_heads=False, read=self._read)
        if choice.dtype != "int8":
            return optimize_for_inference(model, choice.dtype, backend=choice.backend)
        self.about = about_of(cfg, found, OPENVINO, "int8")
        self.about.calibration, examples = calibration_of(self.about, self._calibration, cfg.DATASETS.MAX_MEGAPIXELS)
        with tempfile.TemporaryDirectory() as scratch:
            core = Path(scratch, "core.onnx")
            export_onnx(export_program(model), core)
            self.graph = quantized(core, examples)
        return ArtifactPredictor.of_model(self.graph, self.about, threads=choice.threads)


def seconds_of(detect: Detect, images: Sequence[np.ndarray], batch: int, now: Callable[[], float]) -> float:
    """Median seconds an image, in batches, after one that is not counted."""
    groups = [[images[(i + j) % len(images)] for j in range(batch)] for i in range(0, len(images), batch)]
    passed = []
    for group in [groups[0], *groups]:
        begin = now()
        detect(group)
        passed.append((now() - begin) / batch)
    return statistics.median(passed[1:])


def chosen(rows: Sequence[Row], max_drop: float) -> Row:
    """The fastest whose AP is at most ``max_drop`` below that of the first, the most exact."""
    return min((row for row in rows if row.ap >= rows[0].ap - max_drop), key=lambda row: row.seconds)


def front(rows: Sequence[Row]) -> list[Row]:
    """Those that no other beats in time and AP both; from the fastest to the most accurate."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.seconds, -row.ap)):
        if not best or row.ap > best[-1].ap:
            best.append(row)
    return best


def tune(
    cfg: CfgNode,
    choices: Sequence[Choice],
    folder: Path,
    *,
    calibration: Sequence[Path] = (),
    images: int = 8,
    max_drop: float = 0.5,
    cpu_clock: bool = False,
    read: Reader = read_checkpoint,
) -> tuple[list[Row], Row]:
    """Measure the choices on DATASETS.TEST and write ``detector``, ``tune.json`` and ``pareto.png`` into ``folder``.

    Rows that a call with the same detector, machine and sets has left in ``tune.json`` are not measured again.

    Args:
        calibration: images on which int8 measures its ranges.
        images: of the sets, on which time is measured.
        max_drop: most points of AP below the first choice.
        cpu_clock: time is that of the processor, of all threads.

    Returns:
        All rows, and the one that was written.

    Raises:
        UserError: sets without AP, or images that cannot be read.
    """
    register_sets(cfg.DATASETS.REGISTER)
    known_sets(cfg.DATASETS.TEST, "TEST")
    files = [Path(record["file_name"]) for name in cfg.DATASETS.TEST for record in DatasetCatalog.get(name)]
    pixels = list(spread(files, images, max_megapixels=cfg.DATASETS.MAX_MEGAPIXELS))
    loader = Loader(cfg, calibration, read)
    weights = weights_of(cfg, read)
    _, names = categories_of(cfg, weights.metadata.get("class_names", ()))
    facts = {
        "processor": processor(), "torch": torch.__version__, "weights_sha256": weights.sha256,
        "sets": list(cfg.DATASETS.TEST), "images": len(pixels), "clock": "cpu" if cpu_clock else "wall",
    }  # fmt: skip
    file, known = folder / "tune.json", []
    if file.exists():
        found = read_state(file, {"rows": [dict]}, "remove it")
        if {key: found.get(key) for key in facts} == facts:
            known = [row_of(values) for values in found["rows"]]
    now = time.process_time if cpu_clock else time.perf_counter
    rows: list[Row] = []
    for row in rows_of(
        choices, loader, lambda detect, batch: seconds_of(detect, pixels, batch, now),
        lambda detect: accuracy_of(measure(cfg, detect, names)), {row.choice: row for row in known},
    ):  # fmt: skip
        rows.append(row)
        logger.info("%s: %.3f s, AP %.2f", label(row.choice), row.seconds, row.ap)
        write_json(file, {**facts, "rows": [row.to_json() for row in rows]})
    best = chosen(rows, max_drop)
    figure = pareto_figure([(row.seconds, row.ap, row.choice.dtype) for row in rows], [
        (row.seconds, row.ap, label(row.choice)) for row in front(rows)
    ], (best.seconds, best.ap))  # fmt: skip
    save_figure(figure, folder / "pareto.png")
    write_detector(cfg, best.choice, loader, folder / "detector", weights)
    return rows, best


def label(choice: Choice) -> str:
    """In a few words."""
    words = [choice.dtype, choice.backend, f"{choice.regions} regions", f"{choice.min_size} px"]
    return ", ".join([*words, f"threads {choice.threads}", *([f"batch {choice.batch}"] if choice.batch > 1 else [])])


def write_detector(cfg: CfgNode, choice: Choice, loader: Loader, folder: Path, weights: Checkpoint) -> None:
    """What ``load_detector`` and ``predict`` take: an export for int8, else weights that hold their configuration."""
    if choice.dtype == "int8":
        loader(choice)
        assert loader.about is not None
        with atomic_path(folder) as unfinished:
            unfinished.mkdir()
            loader.about.files = dict.fromkeys(save_openvino(loader.graph, unfinished), "")
            write_about(unfinished, loader.about)
        return
    with atomic_path(folder) as unfinished:
        unfinished.mkdir()
        facts = {**weights.metadata, "config": config_of_choice(cfg, choice).dump()}
        save_checkpoint(unfinished / "model_final.pth", weights.tensors, facts)
