"""One prediction over many files: units of work, shared by processes, resumed after any end."""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.coco import Detections
from ..engine.signals import Stopped, StopRequest, on_stopping_signals
from ..errors import UserError
from ..files import shown
from ..images import MAX_MEGAPIXELS
from ..reporting.boxes import drawable
from . import parts
from .drawings import Drawings, targets
from .inputs import Frame, frames_in, frames_of, is_video

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD = 0.5
"""Where neither the user nor the weights name one."""

Detect = Callable[[Sequence[np.ndarray]], list[Detections]]
"""RGB images -> detections whose category ids are the model's classes."""


@dataclass
class Summary:
    """What stands in the parts of a run.

    Attributes:
        frames: images and frames looked at.
        detections: in all of them.
        best: the highest score below the threshold, of those without a detection; None where there is none.
        broken: what was skipped and why.
        path: the merged results.
    """

    frames: int = 0
    detections: int = 0
    best: float | None = None
    broken: list[str] = field(default_factory=list)
    path: Path = Path()

    @classmethod
    def of(cls, folder: Path, path: Path) -> Summary:
        """Of the parts in ``folder``, merged into ``path``."""
        summary = cls(path=path)
        for record in parts.records(folder):
            if "image" in record:
                summary.frames += 1
                summary.detections += len(record["annotations"])
                if record.get("best") is not None:
                    summary.best = max(summary.best or 0.0, record["best"])
            if "broken" in record:
                summary.broken.append(record["broken"])
        return summary


def units_of(paths: Sequence[Path], batch_size: int) -> list[Sequence[Path]]:
    """What is computed together: up to ``batch_size`` images that follow each other, or one video."""
    units: list[Sequence[Path]] = []
    for video, group in itertools.groupby(paths, is_video):
        size = 1 if video else batch_size
        files = list(group)
        units += [files[i : i + size] for i in range(0, len(files), size)]
    return units


def predict(
    detect: Detect,
    paths: Sequence[Path],
    folder: Path,
    *,
    categories: Sequence[Mapping[str, Any]],
    image_ids: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    score_threshold: float | Sequence[float] = DEFAULT_THRESHOLD,
    broken: str = "error",
    channels: int = 3,
    draw: bool = True,
    resume: bool = False,
    form: str = "coco",
    max_megapixels: float = MAX_MEGAPIXELS,
    progress: Callable[[str], object] | None = None,
    rank: int = 0,
    processes: int = 1,
    decide: Callable[[Callable[[], Any]], Any] = lambda function: function(),
    elsewhere: Elsewhere | None = None,
) -> Summary | None:
    """Detect in every image and frame; drawn copies and the results go to ``folder``.

    Every process of a run calls it with the same arguments, and takes its share.

    Args:
        detect: a :data:`Detect`.
        paths: images and videos of :func:`~resnext_det.prediction.inputs.find_inputs`.
        categories: COCO's record of each of the model's classes.
        image_ids: {file: id} in ``detections.json``; by default 1, 2, ...
        settings: whatever else decides the results; a run is resumed with the same only.
        batch_size: images that go through the model together.
        score_threshold: detections below it are left out; of several, below that of their class.
        broken: ``error`` or ``skip``, for images that cannot be read.
        channels: of the images, INPUT.CHANNELS.
        resume: continue the run in ``folder``.
        form: of the results, one of :data:`~.parts.FORMATS`.
        progress: called with the speed and the time left, about once a second.
        rank, processes: which process this is, and of how many.
        decide: calls a function in one process and gives its result to all.
        elsewhere: computes in other processes; nothing is drawn then.

    Returns:
        What the whole run did; None in a process that ends before the last one, which merges the results.

    Raises:
        UserError: a drawing would replace an input, an image cannot be read, or a run cannot be resumed.
        Stopped: after a stopping signal; ``resume`` continues.
    """
    check_threshold(score_threshold)
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: at least 1")
    if form == "parquet":
        parts.parquet_library()  # missing, it shall be missed before the work
    drawn = targets(paths, folder) if draw else {}
    units = units_of(paths, batch_size)
    digest = hashlib.sha256("\0".join(map(str, paths)).encode(errors="surrogateescape")).hexdigest()
    whole = {
        "inputs": len(paths), "sha256_of_inputs": digest, "batch_size": batch_size, "score_threshold": score_threshold,
        "drawings": draw, "categories": list(categories), **(settings or {}),
    }  # fmt: skip

    done = decide(lambda: parts.begin(folder, whole, resume=resume))
    if done:
        logger.info("--resume: %d of %d are done", sum(len(units[n]) for n in done), len(paths))
    own = [n for n in range(len(units)) if n not in done][rank::processes]
    work = Work(detect, [c["id"] for c in categories], score_threshold, broken, batch_size, max_megapixels, channels)
    names = [drawable(c["name"], str(c["id"])) for c in categories] if draw else []
    stop = StopRequest()
    finished = len(done)
    try:
        with (
            on_stopping_signals(stop),
            parts.Part(folder, rank) as part,
            Drawings(drawn, names) if draw else nullcontext() as drawings,
        ):
            counter = _Progress(sum(frames_in(path) for n in own for path in units[n]) if progress else 0, progress)
            found = (
                elsewhere(work, {n: units[n] for n in own})
                if elsewhere
                else ((n, work.records(units[n], drawings, stop, counter)) for n in own)
            )
            for number, records in found:
                part.write(number, records)
                finished += 1
    except BaseException:
        if finished:
            logger.warning(
                "%d of %d done so far; they are kept in %s, and the same command with --resume continues",
                sum(len(units[n]) for n in parts.whole_units(folder)), len(paths), folder / parts.PARTS,
            )  # fmt: skip
        raise
    if processes > 1 and len(parts.whole_units(folder)) < len(units):
        logger.info("this process has done its share; the last one writes %s", parts.FORMATS[form])
        return None
    return Summary.of(folder, parts.merge(folder, categories, image_ids, form))


@dataclass
class Work:
    """How a unit becomes records. It can be pickled where ``detect`` can."""

    detect: Detect
    category_ids: Sequence[int]
    score_threshold: float | Sequence[float]
    broken: str
    batch_size: int
    max_megapixels: float
    channels: int = 3

    def records(
        self,
        unit: Sequence[Path],
        drawings: Drawings | None = None,
        stop: StopRequest | None = None,
        counter: Callable[[int], object] = bool,
    ) -> Iterator[dict]:
        """The lines of one unit; the drawings are there before the lines are."""
        frames = self._frames(unit)
        while batch := list(itertools.islice(frames, self.batch_size)):
            if stop and stop.signal:
                raise Stopped("stopped by a signal between two images; the same command with --resume continues")
            looked_at = [frame for frame in batch if isinstance(frame, Frame)]
            yield from ({"broken": text} for text in batch if isinstance(text, str))
            found = self.detect([frame.pixels for frame in looked_at]) if looked_at else []
            for frame, detections in zip(looked_at, found, strict=True):
                yield self._record(frame, detections, drawings)
            counter(len(batch))
        if drawings is not None:
            drawings.finish()

    def _frames(self, unit: Sequence[Path]) -> Iterator[Frame | str]:
        """Frames, and a text for what is broken and skipped."""
        for path in unit:
            try:
                yield from frames_of(path, channels=self.channels, max_megapixels=self.max_megapixels)
            except UserError as error:
                if self.broken == "error":
                    raise
                logger.warning("skipped: %s", shown(error, 2000))
                yield str(error)

    def _record(self, frame: Frame, detections: Detections, drawings: Drawings | None) -> dict:
        kept = detections.take(above(detections, self.score_threshold))
        if drawings is not None:
            drawings.add(frame, kept)
        height, width = frame.pixels.shape[:2]
        image: dict[str, Any] = {"file_name": str(frame.path), "width": width, "height": height}
        if frame.index is not None:
            image["frame"] = frame.index
        annotations = list(kept.records())
        for found in annotations:
            del found["image_id"]  # known when all parts are merged
            found["category_id"] = self.category_ids[found["category_id"]]
        record: dict[str, Any] = {"image": image, "annotations": annotations}
        if not annotations and len(detections):
            record["best"] = float(detections.scores.max())
        return record


Elsewhere = Callable[[Work, Mapping[int, Sequence[Path]]], Iterable[tuple[int, Iterable[dict]]]]
"""Work and units by number -> numbers and records, by rising number."""


class _Progress:
    def __init__(self, total: int, tell: Callable[[str], object] | None) -> None:
        self._total, self._tell = total, tell
        self._done = 0
        self._start = self._last = time.perf_counter()

    def __call__(self, number: int) -> None:
        self._done += number
        now = time.perf_counter()
        if self._tell is not None and (now - self._last > 1 or self._done >= self._total):
            speed = self._done / (now - self._start)
            left = max(self._total - self._done, 0) / speed
            self._tell(f"{self._done}/{self._total} images, {speed:.2f} per second, {left:.0f} s left")
            self._last = now


def check_threshold(value: float | Sequence[float]) -> None:
    """Raises UserError for a score threshold outside 0 to 1; nan is outside."""
    for one in np.atleast_1d(value):
        if not 0 <= one <= 1:
            raise UserError(f"--score-threshold {one:g}: scores are between 0 and 1; give a number in that range")


def above(detections: Detections, threshold: float | Sequence[float]) -> np.ndarray:
    """(N,) bool: what scores ``threshold`` or more, or that of its class, one for each of the model's."""
    return detections.scores >= (np.asarray(threshold)[detections.category_ids] if np.ndim(threshold) else threshold)
