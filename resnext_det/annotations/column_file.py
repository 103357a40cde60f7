"""Columns, such as a checked set's, in one flat file, which all processes of a run and their data workers map.

``MAGIC``, the length of the header, the header (JSON: what the set was made from, each column's place), the columns.
Nothing in it is code. A file of another user, or that others may write to, is not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..files import atomic_write, misfit, open_regular
from .dataset import Dataset, Texts

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
MAGIC = b"resnext_det columns 2\n"
_HEADER_BYTES = 1 << 26
_ALIGNED = 64
_COLUMNS = {
    "image_ids": ("int64", "I"), "widths": ("int64", "I"), "heights": ("int64", "I"), "category_ids": ("int64", "K"),
    "annotation_ids": ("int64", "A"), "image": ("int64", "A"), "category": ("int64", "A"), "boxes": ("float64", "A4"),
    "areas": ("float64", "A"), "iscrowd": ("int64", "A"), "difficult": ("bool", "A"), "num_keypoints": ("int64", "A"),
}  # fmt: skip
_TEXTS: dict[str, str | None] = {"file_names": "I", "masks": "A", "keypoints": "A", "places": None}
_SCHEMA = {
    "key": str, "facts": object, "about": object, "digest": str,
    "columns": {str: [str, range(1 << 48), range(1 << 48)]},
}  # fmt: skip
_SET = {
    "source": str, "image_root": (None, str), "class_names": [str], "annotated": bool,
    "sizes": {"I": int, "K": int, "A": int},
}  # fmt: skip


class Unusable(Exception):
    """Why a file is not read."""


def key_of(*facts: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def cache_file(folder: str | os.PathLike, source: str, ending: str, *facts: Any) -> Path:
    """``folder/cache/NAME-HASH.ending`` of what is made from ``source`` and ``facts``."""
    place = os.path.abspath(source)
    return Path(folder, "cache", f"{os.path.basename(place)}-{key_of(place, *facts)[:8]}.{ending}")


def recalled(path: Path, read: Callable[[Path], Value]) -> Value | None:
    """``read(path)``; None where there is no such file, or none that is usable: a line in the log says why."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (OSError, Unusable) as error:
        logger.info("%s %s: it is made again", path, error)
        return None


def kept(path: Path, write: Callable[[Path], Value]) -> Value | None:
    """``write(path)``, its folder made; None, and a line in the log, where that cannot be written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return write(path)
    except (OSError, Unusable) as error:
        logger.info("%s: not kept for other processes and runs: %s", path, error)
        return None


def digest_of(path: str | os.PathLike) -> str:
    """SHA-256 of a user's file."""
    with open_regular(path) as file:
        found = hashlib.sha256()
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def write_columns(path: Path, dataset: Dataset, key: str, facts: Any) -> None:
    """Write the set where others cannot change it.

    Args:
        key: of what it was made from; it is not read for another.
        facts: kept with it, as JSON.

    Raises:
        OSError: the place cannot be written to.
        Unusable: ids that need more than 64 bits.
    """
    given = {field.name: getattr(dataset, field.name) for field in fields(dataset)}
    columns = {name: value for name, value in given.items() if isinstance(value, np.ndarray | Texts)}
    if any(isinstance(column, np.ndarray) and column.dtype == object for column in columns.values()):
        raise Unusable("ids of more than 64 bits")
    sizes = {"I": len(dataset.image_ids), "K": len(dataset.class_names), "A": len(dataset)}
    about = {"sizes": sizes, **{name: given[name] for name in _SET if name in given}}
    write_arrays(path, columns, key, facts, about)


def write_arrays(
    path: Path, columns: Mapping[str, np.ndarray | Texts], key: str, facts: Any, about: Any = None
) -> None:
    """As :func:`write_columns`, of any columns of int64, float64, bool, uint8 or texts; ``about`` them is kept too."""
    flat = dict(_flat(columns))
    found, places, offset = hashlib.sha256(), {}, 0
    for name, column in flat.items():
        found.update(_bytes(column))
        places[name] = [column.dtype.name, offset, column.nbytes]
        offset += -(-column.nbytes // _ALIGNED) * _ALIGNED
    stated = {"key": key, "facts": facts, "about": about, "digest": found.hexdigest(), "columns": places}
    header = json.dumps(stated).encode()
    start = len(MAGIC) + 8 + len(header)
    with atomic_write(path, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(MAGIC + len(header).to_bytes(8, "little") + header + bytes(-start % _ALIGNED))
        for column in flat.values():
            file.write(_bytes(column))
            file.write(bytes(-column.nbytes % _ALIGNED))


def _flat(columns: Mapping[str, np.ndarray | Texts]) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in columns.items():
        if isinstance(value, Texts):
            yield f"{name}.data", np.ascontiguousarray(value.data)
            yield f"{name}.offsets", np.ascontiguousarray(value.offsets)
        else:
            yield name, np.ascontiguousarray(value)


def _bytes(column: np.ndarray) -> memoryview:
    return column.reshape(-1).view(np.uint8).data


def map_columns(path: Path, key: str, *, verify: bool = True) -> tuple[Dataset, Any]:
    """(the set, whose columns stay in the file; the facts that it was written with); see :func:`map_arrays`."""
    columns, facts, about = map_arrays(path, key, verify=verify)
    try:
        if why := misfit(about, _SET):
            raise ValueError(why)
        dataset = _dataset(about, columns)
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"is damaged ({error})") from None
    if verify:
        _check_places(dataset)
    return dataset, facts


def map_arrays(path: Path, key: str, *, verify: bool = True) -> tuple[dict[str, np.ndarray | Texts], Any, Any]:
    """(the columns by name, which stay in the file; the facts; what was kept about them).

    Args:
        verify: read all of it and compare it with its hash, once for all processes.

    Raises:
        OSError: there is none.
        Unusable: it was made from something else, is damaged, or others may have written it.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise Unusable("others may write to it")
        if status.st_size < len(MAGIC) + 8:
            raise Unusable("is not whole")
        data = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
    try:
        header, start = _header(data)
        if header["key"] != key:
            raise Unusable("was made from other data or options")
        flat = {name: _column(data, start, *place) for name, place in header["columns"].items()}
        columns: dict[str, np.ndarray | Texts] = {name: flat[name] for name in flat if "." not in name}
        for name in [name.removesuffix(".data") for name in flat if name.endswith(".data")]:
            columns[name] = _texts(flat[f"{name}.data"], flat[f"{name}.offsets"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Unusable(f"is damaged ({error})") from None
    if verify:
        found = hashlib.sha256()
        for one in flat.values():
            found.update(_bytes(one))
        if found.hexdigest() != header["digest"]:
            raise Unusable("is damaged (its hash)")
        for name, column in columns.items():
            ends = column.offsets if isinstance(column, Texts) else None
            if ends is not None and (ends[0] != 0 or ends[-1] != len(column.data) or (ends[1:] < ends[:-1]).any()):
                raise Unusable(f"is damaged (its texts, {name})")
    return columns, header["facts"], header["about"]


def _header(data: mmap.mmap) -> tuple[dict[str, Any], int]:
    """What the file says of itself, and where its columns begin."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("no header")
    start = len(MAGIC) + 8
    length = int.from_bytes(data[len(MAGIC) : start], "little")
    if length > min(_HEADER_BYTES, len(data) - start):
        raise ValueError("its header is not whole")
    header = json.loads(data[start : start + length])
    if why := misfit(header, _SCHEMA):
        raise ValueError(why)
    return header, -(-(start + length) // _ALIGNED) * _ALIGNED


def _column(data: mmap.mmap, start: int, kind: str, offset: int, length: int) -> np.ndarray:
    if kind not in ("int64", "float64", "bool", "uint8") or start + offset + length > len(data):
        raise ValueError("a column is not whole")
    dtype = np.dtype(kind)
    if length % dtype.itemsize or offset % _ALIGNED:
        raise ValueError("a column is not whole")
    if not length:
        return np.zeros(0, dtype)
    return np.frombuffer(data, dtype, length // dtype.itemsize, start + offset)


def _texts(data: np.ndarray, offsets: np.ndarray) -> Texts:
    if offsets.dtype.name != "int64" or data.dtype.name != "uint8" or not len(offsets):
        raise ValueError("its texts")
    return Texts(data, offsets)


def _dataset(about: Mapping[str, Any], columns: Mapping[str, Any]) -> Dataset:
    sizes, given = about["sizes"], {key: value for key, value in about.items() if key != "sizes"}
    if len(about["class_names"]) != sizes["K"]:
        raise ValueError("its classes")
    for name, (kind, size) in _COLUMNS.items():
        if name == "num_keypoints" and name not in columns:
            continue
        column = columns[name]
        column = column.reshape(-1, 4) if size == "A4" else column
        if column.dtype.name != kind or len(column) != sizes[size[0]]:
            raise ValueError(name)
        given[name] = column
    for name, of in _TEXTS.items():
        if name in columns:
            given[name] = columns[name]
            if not isinstance(given[name], Texts) or of and len(given[name]) != sizes[of]:
                raise ValueError(name)
    return Dataset(**given)


def _check_places(dataset: Dataset) -> None:
    """Raises Unusable where a position leads nowhere."""
    for places, number in ((dataset.image, len(dataset.image_ids)), (dataset.category, len(dataset.class_names))):
        if len(places) and not (0 <= places.min() and places.max() < number):
            raise Unusable("is damaged (its positions)")
