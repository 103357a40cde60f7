"""One field of every record at once, as a numpy array: hundreds of thousands of annotations in a second."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

MISSING = object()
_LARGEST = 2**63


@dataclass
class Column:
    """Values of one field.

    Attributes:
        values: (N,) int64 or (N, 4) float64; undefined where ``bad``.
        bad: rows that hold no such value.
        cast: rows whose value was turned into one without loss.
    """

    values: np.ndarray
    bad: list[int] = field(default_factory=list)
    cast: list[int] = field(default_factory=list)


def get(records: list[dict], key: str, default: object = MISSING) -> list:
    """``key`` of every record."""
    return [record.get(key, default) for record in records]


def integers(values: list, *, wide: bool = False) -> Column:
    """Integers of 64 bits. A text is cast when its number is written back the same ("12", not "012"); so is 12.0.

    Args:
        wide: also take unsigned ones of 64 bits; ``values`` then hold Python integers if one is so large.
    """
    if set(map(type, values)) <= {int}:
        try:
            return Column(np.array(values, dtype=np.int64))
        except OverflowError:
            pass
    column = Column(np.zeros(len(values), dtype=object if wide else np.int64))
    largest = 2 * _LARGEST if wide else _LARGEST
    for row, value in enumerate(values):
        kind = type(value)
        if kind is str and len(value) <= 20 and value.removeprefix("-").isdecimal() and str(int(value)) == value:
            value, kind = int(value), int
            column.cast.append(row)
        elif kind is float and abs(value) < 2**53 and value.is_integer():
            value, kind = int(value), int
            column.cast.append(row)
        if kind is int and -_LARGEST <= value < largest:
            column.values[row] = value
        else:
            column.bad.append(row)
    if wide and all(value < _LARGEST for value in column.values):
        column.values = column.values.astype(np.int64)
    return column


def number(value: object) -> float:
    """A finite number as float; NaN for anything else."""
    if type(value) not in (int, float):
        return math.nan
    try:
        value = float(value)
    except OverflowError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def boxes(values: list) -> Column:
    """(N, 4) finite numbers; ``cast`` are the boxes with coordinates written as texts."""
    if not values:
        return Column(np.zeros((0, 4)))
    if set(map(type, values)) == {list} and set(map(len, values)) == {4}:
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) <= {int, float}:
            try:
                array = np.array(flat, dtype=np.float64).reshape(-1, 4)
            except OverflowError:
                pass
            else:
                return Column(array, np.flatnonzero(~np.isfinite(array).all(axis=1)).tolist())
    column = Column(np.zeros((len(values), 4)))
    for row, value in enumerate(values):
        if not isinstance(value, list) or len(value) != 4:
            column.bad.append(row)
            continue
        if any(type(v) is str for v in value):
            column.cast.append(row)
            value = [_text_number(v) if type(v) is str else v for v in value]
        column.values[row] = box = [number(v) for v in value]
        if not all(map(math.isfinite, box)):
            column.bad.append(row)
    return column


def _text_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
