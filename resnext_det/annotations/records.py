"""The images and annotations of a COCO document as columns, read piece by piece: never are all of them objects."""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from ..errors import UserError
from ..files import open_regular, shown
from . import columns
from .columns import Column
from .reading import no_cycle_search, one_of_each, read_json, return_memory

Kinds = Mapping[str, Callable[[list], Column]]

IMAGE_COLUMNS: Kinds = {
    "id": columns.wide,
    "file_name": columns.objects,
    "width": columns.optional,
    "height": columns.optional,
}
ANNOTATION_COLUMNS: Kinds = {
    "id": columns.wide,
    "image_id": columns.wide,
    "category_id": columns.wide,
    "bbox": columns.boxes,
    "area": columns.numbers,
    "iscrowd": columns.crowds,
    "ignore": columns.flags,
    "difficult": columns.flags,
    "segmentation": columns.flags,
    "keypoints": columns.flags,
    "num_keypoints": columns.optional,
}
"""{field: how its values become a column}. A segmentation or list of keypoints is only known to be there."""

KINDS: Mapping[str, Kinds] = {"images": IMAGE_COLUMNS, "annotations": ANNOTATION_COLUMNS}


class Records(Sequence[dict]):
    """A list of objects whose fields of interest are columns; an object itself is made anew whenever it is asked for.

    Attributes:
        table: {field: its column}.
    """

    def __init__(self, table: dict[str, Column], firsts: Sequence[int], read: Callable[[int], list[dict]]) -> None:
        """
        Args:
            firsts: row of the first object of each piece, and the number of rows.
            read: the objects of a piece.
        """
        self.table, self._firsts, self._read = table, firsts, read
        self._piece: tuple[int, list[dict]] = (-1, [])

    @classmethod
    def of(cls, records: list[dict], kinds: Kinds) -> Records:
        """A list that is in memory."""
        table = {key: kind(columns.get(records, key)) for key, kind in kinds.items()}
        return cls(table, [0, len(records)], lambda piece: records)

    def __len__(self) -> int:
        return self._firsts[-1]

    def _objects(self, piece: int) -> list[dict]:
        if self._piece[0] != piece:
            self._piece = (piece, self._read(piece))
        return self._piece[1]

    @overload
    def __getitem__(self, row: int) -> dict: ...
    @overload
    def __getitem__(self, row: slice) -> list[dict]: ...
    def __getitem__(self, row: int | slice) -> dict | list[dict]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        piece = bisect.bisect_right(self._firsts, row) - 1
        return self._objects(piece)[row - self._firsts[piece]]

    def __iter__(self) -> Iterator[dict]:
        for piece in range(len(self._firsts) - 1):
            yield from self._objects(piece)

    def those(self, rows: np.ndarray) -> Iterator[dict]:
        """The objects of ``rows``; where they rise, the file is read once and in parts."""
        return (self[row] for row in rows.tolist())


def open_document(path: str | os.PathLike, hint: str = "give the annotations' JSON file") -> Any:
    """What a JSON file holds; its lists of images and annotations are :class:`Records` where they are well formed.

    Raises:
        UserError: as :func:`~.reading.read_json`.
    """
    from . import typed_json  # msgspec, which a detector that has left with its own packages does without

    try:
        with open_regular(path) as file, no_cycle_search():
            text = file.read()
            places = typed_json.values_of(text)
            document: dict[str, Any] = {
                key: json.loads(text[start:stop], object_pairs_hook=one_of_each)
                for key, (start, stop) in places.items()
                if key not in KINDS or text[start : start + 1] != b"["
            }
            del text
            for key in KINDS.keys() & places.keys() - document.keys():
                document[key] = _records(path, typed_json.pieces(file, *places[key], KINDS[key]), KINDS[key])
            return document
    except (typed_json.Untyped, UserError, OSError, ValueError, RecursionError):
        return read_json(path, hint)  # it reads everything that can be read, and explains the rest


def _records(path: str | os.PathLike, pieces: Iterable[tuple], kinds: Kinds) -> Records:
    parts: dict[str, list[Column]] = {key: [] for key in kinds}
    firsts, spans = [0], []
    for number, begin, end, piece in pieces:
        for key, column in piece.items():
            parts[key].append(column)
        firsts.append(firsts[-1] + number)
        spans.append((begin, end))
    table = {key: columns.join(parts.pop(key), firsts, kinds[key]) for key in kinds}
    return_memory()

    def read(piece: int) -> list[dict]:
        begin, end = spans[piece]
        try:
            with open_regular(path) as file:
                file.seek(begin)
                found = json.loads(b"[" + file.read(end - begin) + b"]", object_pairs_hook=one_of_each)
            if len(found) != firsts[piece + 1] - firsts[piece] or not all(type(record) is dict for record in found):
                raise ValueError
        except (ValueError, RecursionError):
            raise UserError(f"{shown(path)}: has changed while it was read; read it again") from None
        return found

    return Records(table, firsts, read)
