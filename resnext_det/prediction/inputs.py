"""What a prediction looks at: files found by name, folder or pattern, and the frames in them."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from ..channels import read_channels
from ..errors import UserError, listed
from ..files import shown
from ..images import IMAGE_SUFFIXES, MAX_MEGAPIXELS, BrokenImage, read_image

logger = logging.getLogger(__name__)

VIDEOS = frozenset(".3gp .avi .flv .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split())
FAILED_READS = 1000
"""In a row, after which a video without a known number of frames counts as ended."""


@dataclass
class Frame:
    """One image to look at: ``index`` counts a video's frames from 0 and is None for an image."""

    path: Path
    pixels: np.ndarray  # RGB, uint8 (H, W, 3), or other channels, float32 (H, W, C)
    index: int | None = None
    rate: float = 0.0  # a video's, frames per second


def is_video(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in VIDEOS


def opencv() -> ModuleType:
    """OpenCV, which videos alone need.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("cv2")
    except ImportError as error:
        raise UserError("videos are read and drawn by OpenCV: pip install opencv-python-headless") from error


def find_inputs(inputs: Iterable[str], stdin: Iterable[str] = (), *, output: str | os.PathLike = "") -> list[Path]:
    """Images and videos: files, folders (all in them, sorted), patterns such as ``photos/*.jpg``, ``-`` for a list.

    Each file counts once, by whatever names it is given. What folders and patterns hold beside images and videos is
    left out, counted and named in the log.

    Args:
        output: the folder of the results. Where it lies in a folder of the inputs, it is left out.

    Raises:
        UserError: nothing there by one of the names.
    """
    found: dict[str, Path] = {}
    others: list[Path] = []
    made: list[Path] = []
    own = os.path.realpath(output) if output else ""

    def add(path: Path) -> None:
        found.setdefault(os.path.join(os.path.realpath(path.parent), path.name), path)

    def add_known(paths: Iterable[Path], base: str, nothing: str) -> None:
        """Those with a known ending; those below the output folder are left out."""
        below = own.startswith(os.path.join(os.path.realpath(base or "."), ""))
        count = 0
        for path in paths:
            if not path.is_file():
                continue
            known = path.suffix.lower() in IMAGE_SUFFIXES or is_video(path)
            if below and _inside(path, own):
                made.extend([path] if known else [])
            elif known:
                add(path)
                count += 1
            else:
                others.append(path)
        if not count:
            raise UserError(nothing)

    def look(names: Iterable[str]) -> None:
        for name in names:
            if name == "-":
                look(line.strip() for line in stdin if line.strip())
            elif os.path.isdir(name):
                add_known(sorted(Path(name).rglob("*")), name, f"{name}: no images or videos in this folder")
            elif os.path.isfile(name):
                add(Path(name))
            else:
                paths = [Path(path) for path in sorted(glob.glob(name, recursive=True))]
                base = os.path.dirname(name[: min((name + c).index(c) for c in "*?[")])
                add_known(
                    paths, base, f"{name}: no such file, folder or pattern" if not paths else f"{name}: no images"
                )

    look(inputs)
    if others:
        kinds = Counter(path.suffix.lower() or "no ending" for path in others)
        kinds_said = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(5))
        logger.info(
            "left out, neither images nor videos by their ending: %d (%s), such as %s",
            len(others), kinds_said, listed(map(repr, map(str, others)), 3),
        )  # fmt: skip
    if made:
        logger.info("left out, in the output folder %r: %d", str(output), len(made))
    return list(found.values())


def _inside(path: Path, folder: str) -> bool:
    return os.path.join(os.path.realpath(path.parent), "").startswith(os.path.join(folder, ""))


def read_rgb(path: str | os.PathLike, *, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """RGB (H, W, 3) uint8, by the rules of :mod:`resnext_det.images`, as the detector saw its images in training.

    Raises:
        UserError: not an image, a broken one, or one of more than ``max_megapixels``.
    """
    try:
        pixels = read_image(Path(path), "RGB", max_megapixels=max_megapixels)
    except BrokenImage as error:
        raise UserError(f"{error}, or use --broken skip") from error
    assert pixels is not None  # only other policies leave images out
    return pixels


def read_pixels(path: str | os.PathLike, *, channels: int = 3, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """What a detector with INPUT.CHANNELS ``channels`` sees of a file.

    :func:`read_rgb`; for other channels than three float32 (H, W, ``channels``), the values as in the file.

    Raises:
        UserError: as :func:`read_rgb`; other channels than these.
    """
    if channels == 3:
        return read_rgb(path, max_megapixels=max_megapixels)
    try:
        return read_channels(Path(path), channels, max_megapixels=max_megapixels)
    except BrokenImage as error:
        raise UserError(f"{error}, or use --broken skip") from error


def frames_of(
    path: Path,
    *,
    channels: int = 3,
    max_megapixels: float = MAX_MEGAPIXELS,
    missing: Callable[[str], object] = logger.warning,
) -> Iterator[Frame]:
    """The image in ``path``, or the frames of the video.

    A video is read on after a damaged place; ``missing`` is called with a line on the frames that cannot be read.

    Raises:
        UserError: not an image, or a video of which no frame can be read.
    """
    if not is_video(path):
        yield Frame(path, read_pixels(path, channels=channels, max_megapixels=max_megapixels))
        return
    if channels != 3:
        raise UserError(f"{path}: a video, and the detector has INPUT.CHANNELS {channels}; give PNG or TIFF")
    video = opencv().VideoCapture(str(path))
    try:
        rate = video.get(opencv().CAP_PROP_FPS) or 25.0
        declared = max(int(video.get(opencv().CAP_PROP_FRAME_COUNT)), 0)
        index = number = failed = 0
        lost: list[str] = []
        # A failed read is no end: a decoder gives up at a damaged place and finds the next frame in the next read.
        while failed < (declared + 1 - index if declared else FAILED_READS):
            there, pixels = video.read()
            if not there:
                failed += 1
                continue
            if failed and index:
                at = round(video.get(opencv().CAP_PROP_POS_MSEC) * rate / 1000)
                if index < at < declared:
                    lost.append(f"{index}" if at == index + 1 else f"{index} to {at - 1}")
                    index = at
            failed = 0
            _check_size(path, pixels, max_megapixels)
            yield Frame(path, np.ascontiguousarray(pixels[:, :, ::-1]), index, rate)
            index += 1
            number += 1
        if not number:
            raise UserError(f"{path}: no frame can be read from this video; convert it, or use --broken skip")
        if number < declared:
            where = f", frames {', '.join(lost)} among them" if lost else ""
            missing(f"{shown(path)}: {declared - number} of {declared} frames cannot be read{where}; it is damaged")
    finally:
        video.release()


def _check_size(path: Path, pixels: np.ndarray, max_megapixels: float) -> None:
    height, width = pixels.shape[:2]
    if height * width > max_megapixels * 1e6:
        raise UserError(
            f"{path}: {width}x{height} is more than DATASETS.MAX_MEGAPIXELS {max_megapixels:g}; shrink it or raise that"
        )


def frames_in(path: Path) -> int:
    """How many there are, as a video's header says; at least 1."""
    if not is_video(path):
        return 1
    video = opencv().VideoCapture(str(path))
    try:
        return max(int(video.get(opencv().CAP_PROP_FRAME_COUNT)), 1)
    finally:
        video.release()


def spread(paths: Sequence[Path], number: int, *, max_megapixels: float = MAX_MEGAPIXELS) -> Iterator[np.ndarray]:
    """Up to ``number`` RGB images spread evenly over all inputs and, where these are few, over their videos' frames.

    What cannot be read is left out: it is reported when its turn comes.
    """
    chosen = [paths[i * len(paths) // number] for i in range(number)] if len(paths) > number else list(paths)
    for position, path in enumerate(chosen):
        share = number * (position + 1) // len(chosen) - number * position // len(chosen)
        try:
            if is_video(path):
                total = frames_in(path)
                wanted = {(2 * i + 1) * total // (2 * share) for i in range(share)}
                for frame in frames_of(path, max_megapixels=max_megapixels, missing=lambda text: None):
                    if frame.index in wanted:
                        yield frame.pixels
            else:
                yield read_rgb(path, max_megapixels=max_megapixels)
        except UserError:
            continue
