"""Segmentations as COCO writes them, polygons and run lengths: one rule for ground truth and detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LARGEST = 1e9  # pixels: the coordinate of a polygon, the area of a mask


def fault(value: Any, size: tuple[int, int] | None = None) -> str | None:
    """Why ``value`` is no usable segmentation, or None where it is one.

    Args:
        value: polygons of three points or more, ``[[x, y, x, y, x, y, ...], ...]``, or run lengths ``{size, counts}``
            whose counts are a list or compressed text.
        size: height and width of the image, which run lengths must have; None where they are not known.
    """
    if isinstance(value, dict):
        return _fault_of_runs(value, size)
    if not isinstance(value, list) or not value:
        return "is neither polygons nor a run-length encoding"
    for polygon in value:
        if not isinstance(polygon, list):
            return "is not a list of polygons, [[x, y, x, y, x, y, ...], ...]"
        if any(isinstance(number, list) for number in polygon):
            return "holds points as lists; write a polygon as [x, y, x, y, x, y, ...]"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"has a polygon of {len(polygon)} numbers; it needs three points or more, x and y of each"
        if not all(type(v) in (int, float) and -LARGEST < v < LARGEST for v in polygon):
            return "has a polygon with something else than finite numbers"
    return None


def _fault_of_runs(value: dict, image: tuple[int, int] | None) -> str | None:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(v) is int and v > 0 for v in size):
        return "has no size, [height, width] in pixels"
    if size[0] * size[1] > LARGEST:
        return f"has a size of {size[0]}x{size[1]} pixels, which no image has"
    if image is not None and tuple(size) != image:
        return f"is of {size[1]}x{size[0]} pixels (width x height), its image of {image[1]}x{image[0]}"
    if isinstance(counts, list):
        if not all(type(v) is int and v >= 0 for v in counts):
            return "has runs that are not whole numbers from 0 on"
        total = sum(counts)
    elif isinstance(counts, str | bytes):
        runs = decoded_runs(counts)
        if runs is None:
            return "has counts that are no compressed run lengths"
        total = int(runs.sum()) if not (runs < 0).any() else -1
    else:
        return "has no counts, a list or a text"
    if total != size[0] * size[1]:
        return f"has runs that do not add up to its {size[0]}x{size[1]} pixels"
    return None


def decoded_runs(counts: str | bytes) -> np.ndarray | None:
    """The run lengths in COCO's compressed text, or None where it is none.

    Each number takes 5 bits a character from the lowest on, bit 5 says that more follow, and the sign is the highest of
    the last; from the fourth on it is the difference to the number before the last.
    """
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else bytes(counts)
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(~codes & 32)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:  # 35 bits
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, lengths))
    values = np.add.reduceat((codes & 31) << shifts, first)
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    for parity in (1, 2):
        values[parity::2] = np.cumsum(values[parity::2])
    return values


def compressed(counts: list[int] | str | bytes) -> bytes:
    """Run lengths in COCO's compressed text."""
    if not isinstance(counts, list):
        return counts.encode("ascii") if isinstance(counts, str) else counts
    text = bytearray()
    for i, run in enumerate(counts):
        value, more = run - (counts[i - 2] if i > 2 else 0), True
        while more:
            code = value & 31
            value >>= 5
            more = value != (-1 if code & 16 else 0)
            text.append(code + 48 + 32 * more)
    return bytes(text)


def encoded(mask: np.ndarray) -> bytes:
    """Pixels (height, width) bool as COCO's compressed run lengths."""
    pixels = mask.ravel(order="F")
    turns = np.flatnonzero(np.diff(pixels, prepend=False))
    return compressed(np.diff(turns, prepend=0, append=len(pixels)).tolist())


def decoded(counts: str | bytes, size: Sequence[int]) -> np.ndarray:
    """The pixels (height, width) bool of :func:`encoded`."""
    runs = decoded_runs(counts)
    assert runs is not None
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")


def finite_number(value: Any) -> bool:
    """Whether ``value`` is a number (no bool) that a float can hold."""
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and -1e308 < value < 1e308
