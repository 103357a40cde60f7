"""Drawn copies of images and videos: never over an input, never through a link, whole or not there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.coco import Detections
from ..channels import viewable
from ..errors import UserError
from ..files import atomic_path, atomic_write
from ..reporting.boxes import class_color, draw_boxes
from .inputs import Frame, is_video, opencv

CODECS = {".avi": "MJPG"}
"""Of drawn videos, by extension; mp4v for all others."""
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""Pillow's names; images of other endings become PNG, since they are not for photographs or cannot be written."""


def targets(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """The drawn file of each input, a name of its own also where folders hold equal names.

    Raises:
        UserError: a drawn file would replace an input.
    """
    inputs = {os.path.realpath(path) for path in paths}
    files = {_identity(path): path for path in paths}
    taken: set[str] = set()
    found: dict[Path, Path] = {}
    for path in paths:
        ending = path.suffix.lower()
        if is_video(path):
            suffix = ending if ending in (".avi", ".mkv", ".mov") else ".mp4"
        else:
            suffix = path.suffix if ending in FORMATS else ".png"
        name, number = path.stem + suffix, 1
        while name.casefold() in taken:  # some file systems do not tell a.jpg from A.JPG
            number += 1
            name = f"{path.stem}_{number}{suffix}"
        taken.add(name.casefold())
        target = folder / name
        own = os.path.join(os.path.realpath(folder), name)
        # A link of that name is replaced itself, not what it leads to; another name of an input's data is an input.
        same = None if os.path.islink(own) or not os.path.exists(own) else files.get(_identity(Path(own)))
        if own in inputs or same is not None or os.path.abspath(target) == os.path.abspath(path):
            raise UserError(
                f"--output {folder}: the drawing of {path} would replace the input {same or target}; name another "
                "folder, or use --no-drawings"
            )
        found[path] = target
    return found


def _identity(path: Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino


class Drawings:
    """Draws what was found in images and videos; a context manager; it removes an unfinished video."""

    def __init__(self, targets: Mapping[Path, Path], class_names: Sequence[str]) -> None:
        self._targets, self._class_names = targets, list(class_names)
        self._video: tuple[AbstractContextManager[Path], Any] | None = None

    def __enter__(self) -> Drawings:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._video is not None:
            unfinished, writer = self._video
            writer.release()
            self._video = None
            # It swallows nothing: what is raised inside of it comes out again.
            with suppress(type(error[1])) if error[1] is not None else nullcontext():
                unfinished.__exit__(*error)

    def add(self, frame: Frame, detections: Detections) -> None:
        """Draw one image, or the next frame of a video, which :meth:`finish` ends. Category ids are the classes."""
        classes, scores = detections.category_ids.tolist(), detections.scores.tolist()
        texts = [f"{self._class_names[c]} {100 * s:.0f}%" for c, s in zip(classes, scores, strict=True)]
        drawn = draw_boxes(viewable(frame.pixels), detections.boxes, texts, [class_color(c) for c in classes])
        target = self._targets[frame.path]
        if frame.index is None:
            with atomic_write(target, "wb") as file:
                drawn.save(file, format=FORMATS.get(target.suffix.lower(), "PNG"), quality=92)
            return
        if self._video is None:
            code = opencv().VideoWriter_fourcc(*CODECS.get(target.suffix.lower(), "mp4v"))
            unfinished = atomic_path(target)
            writer = opencv().VideoWriter(str(unfinished.__enter__()), code, frame.rate, drawn.size)
            self._video = unfinished, writer
            if not writer.isOpened():
                raise UserError(f"{target}: OpenCV cannot write this video; use --no-drawings for the JSON alone")
        self._video[1].write(np.asarray(drawn)[:, :, ::-1])

    def finish(self) -> None:
        """Give the video, where one is being drawn, its name."""
        if self._video is not None:
            unfinished, writer = self._video
            writer.release()
            self._video = None
            unfinished.__exit__(None, None, None)
