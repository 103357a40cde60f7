"""The images behind ``images``: inside the folder, there, whole, and of the size that the document says."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from ... import images
from ...channels import header_of_channels
from ...errors import UserError
from ...files import place_in_shard
from ...images import BrokenImage, ImageHeader
from .findings import Findings, shorten, some
from .tables import Images

logger = logging.getLogger(__name__)

NOTICE = 60.0
"""Seconds between two lines about how far it is."""


def check_files(
    table: Images,
    root: Path,
    findings: Findings,
    *,
    check_images: bool,
    decode: bool,
    policy: str,
    max_megapixels: float,
    channels: int,
    follow_links: bool,
    workers: int,
) -> None:
    """Marks in ``table`` what cannot be used and fills in the sizes that the document leaves out.

    Without ``check_images`` only existence is looked at, and the headers of the images without a size.
    """
    images.check_policy(policy)
    if not root.is_dir():
        findings.add("error", "no-image-folder", "no such folder", "give the images' folder", file=str(root))
        table.keep[:] = False
        return
    present = _present(table, root, findings, follow_links)
    table.keep &= present
    unsized = (table.widths == 0) | (table.heights == 0)
    wanted = np.flatnonzero(present & (check_images | unsized))
    from tqdm import tqdm  # exported detectors read sets without it

    results: list[ImageHeader | UserError] = []
    with images.quiet_pillow():
        paths = [root / table.file_names[i] for i in wanted]
        look = _looker(decode and check_images, max_megapixels, channels)
        with ThreadPoolExecutor(workers) as pool:
            results = list(
                tqdm(_logged(pool.map(look, paths), len(paths)), total=len(paths), desc="images", disable=None)
            )
    for i, path, result in zip(wanted.tolist(), paths, results, strict=True):
        _judge(table, i, path, result, findings, policy, max_megapixels)


def _logged(results: Iterable, number: int) -> Iterator:
    """The same, with a line in the log now and then: where it goes to a file nobody sees a bar."""
    begun = spoken = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if now - spoken > NOTICE:
            spoken, left = now, (now - begun) * (number - done) / done
            logger.info("looked at %d of %d images, %.0f minutes left", done, number, left / 60)


def _looker(decode: bool, max_megapixels: float, channels: int) -> Callable[[Path], ImageHeader | UserError]:
    def look(path: Path) -> ImageHeader | UserError:
        try:
            if channels != 3:
                return header_of_channels(path, channels, max_megapixels, decode=decode)
            with images.open_image(path, max_megapixels) as image:
                header = images.describe(image)
            if decode:
                images.decode(path, max_megapixels)
            return header
        except UserError as error:
            return error

    return look


def _judge(
    table: Images,
    i: int,
    path: Path,
    result: ImageHeader | UserError,
    findings: Findings,
    policy: str,
    max_megapixels: float,
) -> None:
    row, image_id = int(table.rows[i]), int(table.ids[i])
    here: dict[str, Any] = {"field": f"images[{row}]", "id": image_id}
    if isinstance(result, BrokenImage):
        severity, does = "error", "or use --policy skip or load (in training DATASETS.BROKEN_IMAGES)"
        if policy == "load":
            result, salvaged = _salvage(path, result, max_megapixels)
            if salvaged:
                findings.add(
                    "warning", "broken-image-loaded", f"{path} is broken; the rest is used", "replace it", **here
                )
        if isinstance(result, BrokenImage):
            if policy != "error":
                severity, does = "warning", "the image and its annotations are left out"
            findings.add(severity, "broken-image", str(result), does, **here)
            table.keep[i] = False
            return
    if isinstance(result, UserError):
        findings.add("error", "unusable-image", str(result), "or remove it from the file", **here)
        table.keep[i] = False
        return
    if result.mode.startswith("I"):
        findings.add("note", "16-bit", f"{path} has 16 bits; the high byte is used", "nothing to do", **here)
    if result.several:
        findings.add("note", "several-frames", f"{path} has several frames; the first is used", "nothing to do", **here)
    named = images.format_of_name(path.name)
    if named and result.format and not {named, result.format} <= {"JPEG", "MPO"} and named != result.format:
        findings.add("note", "named-otherwise", f"{path} is {result.format} by its content", "rename it", **here)
    given = (int(table.widths[i]), int(table.heights[i]))
    actual = (result.width, result.height)
    if 0 in given:
        table.widths[i], table.heights[i] = actual
        return
    if given == actual:
        return
    # The size stays as it was given: whether the boxes fit the image is for people to say, so --fix must not hide it.
    if result.turned and given == actual[::-1]:
        why = (
            f"{given[0]}x{given[1]} is the size before the EXIF orientation {result.orientation}; upright {path} is "
            f"{actual[0]}x{actual[1]}"
        )
        fix = "annotate the upright image, or store it upright without the EXIF tag"
    else:
        why = f"size {given[0]}x{given[1]} is not that of {path}, {actual[0]}x{actual[1]}"
        fix = "correct width and height, and the boxes if the image was resized"
    findings.add("error", "image-size", why, fix, **here)


def _salvage(path: Path, error: BrokenImage, max_megapixels: float) -> tuple[ImageHeader | BrokenImage, bool]:
    """What policy "load" makes of a broken file; one at a time, since Pillow's switch for it is global."""
    try:
        images.decode(path, max_megapixels, truncated=True)
        return images.read_header(path, max_megapixels=max_megapixels), True
    except UserError:
        return error, False


def _present(table: Images, root: Path, findings: Findings, follow_links: bool) -> np.ndarray:
    """Which images are files inside ``root``; one listing per folder instead of a look at every file."""
    listings: dict[str, dict[str, bool]] = {}
    real_root = os.path.realpath(root)
    missing: list[tuple[int, str]] = []
    present = np.zeros(len(table.ids), dtype=bool)
    shards: dict[str, tuple[bool | None, int]] = {}
    for i, name in enumerate(table.file_names):
        here: dict[str, Any] = {"field": f"images[{int(table.rows[i])}].file_name", "id": int(table.ids[i])}
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name.startswith(("/", "\\")) or PureWindowsPath(name).drive:
            findings.add(
                "error",
                "path-outside",
                f"{shorten(name)} leads out of {root}",
                "write a path below the image folder",
                **here,
            )
            continue
        folder, _, file = name.rpartition("/")
        if place := place_in_shard(name):
            if folder not in shards:
                shards[folder] = _shard(root, folder, real_root, follow_links)
            inside, size = shards[folder]
            inside = inside if sum(place[1:]) <= size else None
        else:
            if folder not in listings:
                listings[folder] = _listing(root, folder, real_root, follow_links)
            inside = listings[folder].get(file)
        if inside:
            present[i] = True
        elif inside is None:
            missing.append((i, name))
        else:
            findings.add(
                "error", "path-outside", f"{shorten(name)} is a link out of {root}",
                "copy the image into the folder, or allow links with --follow-links (in training "
                "DATASETS.FOLLOW_LINKS True)",
                **here,
            )  # fmt: skip
    if missing and len(missing) == len(table.ids) > 1:
        names = [name for _, name in missing]
        findings.add(
            "error", "missing-image", f"none of the {len(names)} images is in {root}: {some(names, 3)}",
            "correct the image folder", field="images[].file_name", count=len(names),
        )  # fmt: skip
    else:
        findings.add_each(
            "error",
            "missing-image",
            range(len(missing)),
            lambda k: {
                "message": f"{shorten(missing[k][1])} is not in {root}{_hint(missing[k][1], listings)}",
                "fix": "add the image or remove its entry",
                "field": f"images[{int(table.rows[missing[k][0]])}].file_name",
                "id": int(table.ids[missing[k][0]]),
            },
        )
    return present


def _listing(root: Path, folder: str, real_root: str, follow_links: bool) -> dict[str, bool]:
    """{name: whether it lies in the folder for real} of everything in ``root/folder``."""
    path = os.path.join(root, folder)
    try:
        inside = follow_links or _within(os.path.realpath(path), real_root)
        with os.scandir(path) as entries:
            return {
                entry.name: inside
                and (follow_links or not entry.is_symlink() or _within(os.path.realpath(entry.path), real_root))
                for entry in entries
            }
    except (OSError, ValueError):
        return {}


def _shard(root: Path, name: str, real_root: str, follow_links: bool) -> tuple[bool | None, int]:
    """(whether the shard lies in the folder for real, None where there is none; its bytes)."""
    path = os.path.join(root, name)
    if not os.path.isfile(path):
        return None, 0
    return follow_links or _within(os.path.realpath(path), real_root), os.path.getsize(path)


def _within(path: str, real_root: str) -> bool:
    return path == real_root or path.startswith(real_root.rstrip(os.sep) + os.sep)


def _hint(name: str, listings: dict[str, dict[str, bool]]) -> str:
    folder, _, file = name.rpartition("/")
    for other in listings.get(folder, {}):
        if other.casefold() == file.casefold():
            return f" (there is {shorten(other)})"
    return " (write / instead of \\)" if "\\" in name else ""


def path_inside(root: str | os.PathLike, name: str) -> Path | None:
    """The file ``name`` below ``root``, or None where it leads out of it, through links too."""
    if not name or "\0" in name:
        return None
    path = os.path.join(root, name)
    return Path(path) if _within(os.path.realpath(path), os.path.realpath(root)) else None


def first_outside(root: str | os.PathLike, paths: Iterable[str], *, follow_links: bool = False) -> str | None:
    """The first of ``paths`` that does not lie below ``root``; links count as where they lead, unless allowed."""
    resolved = os.path.normpath if follow_links else cache(os.path.realpath)  # one look at each folder
    real_root = resolved(os.fspath(root))
    for path in paths:
        folder, name = os.path.split(path)
        linked = not follow_links and os.path.islink(path)
        if not _within(os.path.realpath(path) if linked else os.path.join(resolved(folder), name), real_root):
            return path
    return None
