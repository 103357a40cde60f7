"""One field of every record at once, as a numpy array: hundreds of thousands of annotations in a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

MISSING = object()
_LARGEST = 2**63


@dataclass
class Column:
    """Values of one field.

    Attributes:
        values: (N,) or (N, 4); undefined where ``bad``.
        bad: rows that hold no such value.
        cast: rows whose value was turned into one without loss.
        absent: (N,) rows without the field (or, in columns that may be empty, with null); None where there are none.
    """

    values: np.ndarray
    bad: list[int] = field(default_factory=list)
    cast: list[int] = field(default_factory=list)
    absent: np.ndarray | None = None

    @property
    def missing(self) -> np.ndarray:
        """(N,) bool."""
        return np.zeros(len(self.values), dtype=bool) if self.absent is None else self.absent

    def narrow(self) -> Column:
        """Without numbers of more than 64 bits with their sign, which are bad then; a column of its own."""
        if self.values.dtype != object:
            return Column(self.values, self.bad, self.cast, self.absent)
        large = [row for row, value in enumerate(self.values) if value >= _LARGEST]
        values = self.values.copy()
        values[large] = 0
        return Column(values.astype(np.int64), sorted({*self.bad, *large}), self.cast, self.absent)


def get(records: list[dict], key: str, default: object = MISSING) -> list:
    """``key`` of every record."""
    return [record.get(key, default) for record in records]


def join(parts: list[Column], firsts: Sequence[int], kind: Callable[[list], Column]) -> Column:
    """One column of those of parts that begin at the rows ``firsts``."""
    if not parts:
        return kind([])
    bad = [first + row for first, part in zip(firsts, parts, strict=False) for row in part.bad]
    cast = [first + row for first, part in zip(firsts, parts, strict=False) for row in part.cast]
    some = any(part.absent is not None for part in parts)
    absent = np.concatenate([part.missing for part in parts]) if some else None
    return Column(np.concatenate([part.values for part in parts]), bad, cast, absent)


def wide(values: list) -> Column:
    """Ids: :func:`integers` of up to 64 bits without a sign; those that are not there are bad and ``absent``."""
    column = integers(values, wide=True)
    if column.bad:
        column.absent = np.array([value is MISSING for value in values], dtype=bool)
    return column


def optional(values: list) -> Column:
    """:func:`integers`, 0 where there is none."""
    absent = np.array([value is None or value is MISSING for value in values], dtype=bool)
    column = integers([0 if none else value for value, none in zip(values, absent.tolist(), strict=True)])
    column.absent = absent if absent.any() else None
    return column


def crowds(values: list) -> Column:
    """:func:`optional`, of which true is 1 and false 0."""
    return optional([int(value) if type(value) is bool else value for value in values])


def numbers(values: list) -> Column:
    """Finite numbers as floats; NaN for anything else."""
    absent = np.array([value is None or value is MISSING for value in values], dtype=bool)
    found = np.array([number(value) for value in values], dtype=np.float64)
    return Column(found, absent=absent if absent.any() else None)


def flags(values: list) -> Column:
    """Whether there is something other than null, false, 0, "", [] and {}."""
    return Column(np.array([value is not MISSING and bool(value) for value in values], dtype=bool))


def objects(values: list) -> Column:
    """The values as they are."""
    column = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        column[row] = value
    return Column(column)


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
    if not isinstance(value, int | float) or isinstance(value, bool):
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
