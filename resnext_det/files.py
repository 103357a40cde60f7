"""Files and what is said of them: opened with limits, whole or not there, under safe names, shown as plain text.

Our own files of JSON are read here, against a schema: users, other programs and bad disks change them too.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shutil
import socket
import stat
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from .errors import UserError

SHOWN = 200
"""Characters of a text from data that are printed, logged or drawn."""

CONFIG_BYTES = 1 << 20
"""Largest YAML file, list of classes or other small text of a user's."""

STATE_BYTES = 1 << 26
"""Largest file that one of our own programs has written as JSON."""

RESULTS_FILE = "results.json"
"""The numbers of a run's last evaluation, in its folder."""

COUNT = range(1 << 53)
"""In a schema: a whole number from 0 on."""
_SCALARS = (float, None)
_TABLES = {"thresholds?": dict}  # curves, confusion and calibration, which nothing here reads back
_TASK: dict = {**_TABLES, str: (float, None, {str: _SCALARS})}
METRICS: dict = {**_TABLES, str: (float, None, _TASK)}
"""Schema of ``results.json``: numbers by name, of one set, or by task and set."""

_COMPONENT_BYTES = 200  # file systems take 255; a name grows by an ending and by what marks a half-written file
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices, where Windows opens them
_MEMBER = re.compile(r"(\d{1,15})-(\d{1,12})-[^/]+")
_JOINERS = "\u200c\u200d"  # invisible, and part of words in Persian, Hindi, ...


Place = TypeVar("Place", bound=str | os.PathLike)
_places: ContextVar[set[str] | None] = ContextVar("places", default=None)


@contextmanager
def places_looked_at() -> Iterator[set[str]]:
    """The absolute paths that :func:`looked_at` is given while the block runs, as by :func:`open_regular`."""
    found: set[str] = set()
    token = _places.set(found)
    try:
        yield found
    finally:
        _places.reset(token)


def looked_at(path: Place) -> Place:
    """``path`` itself. What its reader makes depends on it: on its content, on a folder's names, or on its absence."""
    if (places := _places.get()) is not None:
        places.add(os.path.abspath(os.fsdecode(path)))
    return path


def open_regular(path: str | os.PathLike, limit: int | None = None) -> BinaryIO:
    """Open a user's file for reading, in bytes; a file within a shard too (:func:`place_in_shard`).

    Pipes (reading would wait for ever), devices (they need not end) and folders are refused.

    Args:
        limit: most bytes that the file may have; None for any number.

    Raises:
        UserError: no such file, not a regular file, larger than ``limit``, or not readable.
    """
    name = shown(looked_at(path))
    try:
        _check_regular(os.stat(path), name, limit)  # before it is opened: opening a device can do something
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _check_regular(os.fstat(handle), name, limit)
        except UserError:
            os.close(handle)
            raise
    except (FileNotFoundError, NotADirectoryError) as error:
        if isinstance(error, NotADirectoryError) and (place := place_in_shard(path)):
            return io.BytesIO(_read_member(name, *place, limit))
        raise UserError(f"{name}: no such file") from None
    except PermissionError:
        raise UserError(f"{name}: not readable; give read permission") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{name}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    return os.fdopen(handle, "rb")


def place_in_shard(path: str | os.PathLike) -> tuple[str, int, int] | None:
    """(tar file, offset, size) of ``SHARD.tar/OFFSET-SIZE-NAME``, a file within a tar file; None for other paths."""
    shard, name = os.path.split(os.fspath(path))
    found = _MEMBER.fullmatch(name) if shard.endswith(".tar") else None
    return (shard, int(found[1]), int(found[2])) if found else None


def is_file(path: str | os.PathLike) -> bool:
    """Whether there is such a file, or such a shard."""
    place = place_in_shard(path)
    return os.path.isfile(place[0] if place else path)


def _read_member(name: str, shard: str, offset: int, size: int, limit: int | None) -> bytes:
    """The bytes at that place, if tar's header before it says that a file of this size is there."""
    if limit is not None and size > limit:
        raise UserError(f"{name}: has {size} bytes, more than the limit of {limit}")
    data = b""
    with open_regular(shard) as file:
        if tarfile.BLOCKSIZE <= offset <= os.fstat(file.fileno()).st_size - size:
            file.seek(offset - tarfile.BLOCKSIZE)
            data = file.read(tarfile.BLOCKSIZE + size)
    try:
        header = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "replace")
        there = header.isfile() and header.size == size == len(data) - tarfile.BLOCKSIZE
    except (tarfile.TarError, ValueError):
        there = False
    if not there:
        raise UserError(f"{name}: is not there in the shard; write its index anew: make-shards --labels --index FOLDER")
    return data[tarfile.BLOCKSIZE :]


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """All bytes of a user's file; errors as :func:`open_regular`, and for a file that cannot be read."""
    try:
        with open_regular(path, limit) as file:
            data = b""  # piece by piece: asked for ``limit`` bytes at once, Python sets as many aside for a small file
            while len(data) <= limit and (piece := file.read(min(max(len(data), 1 << 20), limit + 1 - len(data)))):
                data += piece
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    if len(data) > limit:  # it grew, or lies in a file system that states no sizes
        raise UserError(f"{shown(path)}: more than the limit of {limit} bytes")
    return data


def _check_regular(status: os.stat_result, name: str, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((what for is_kind, what in _KINDS if is_kind(status.st_mode)), "no regular file")
        raise UserError(f"{name}: is {kind}; give a file")
    if limit is not None and status.st_size > limit:
        raise UserError(f"{name}: has {status.st_size} bytes, more than the limit of {limit}")


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def expanded(path: str) -> str:
    """A path as the user wrote it, with ``~`` and ``$VAR`` replaced as a shell does; other text is unchanged."""
    return os.path.expandvars(os.path.expanduser(path)) if "~" in path or "$" in path else path


def safe_component(name: object, what: str = "name") -> str:
    """``name``, from data, if it can be the name of one file or folder within a folder.

    Args:
        what: it is, for the message, such as "class name".

    Raises:
        UserError: a path, a hidden or reserved name, control characters, or too long.
    """
    reason = _unsafe(name)
    if reason:
        raise UserError(f"{what} {shown(name)!r} cannot name a file ({reason}); rename it")
    return str(name)


def _unsafe(name: object) -> str:
    if not isinstance(name, str):
        return f"a {type(name).__name__}, not text"
    if not name.strip():
        return "empty"
    if any(separator in name for separator in ("/", "\\")):
        return "holds a path"
    if name.startswith("."):
        return "hidden"
    if shown(name, len(name)) != name:
        return "control characters"
    if len(name.encode()) > _COMPONENT_BYTES:
        return f"longer than {_COMPONENT_BYTES} bytes"
    if name != name.strip() or name.endswith(".") or _RESERVED.fullmatch(name) or any(c in name for c in ':*?"<>|'):
        return "not allowed on every system"
    return ""


def shown(text: object, limit: int = SHOWN) -> str:
    """``text``, which comes from data, as it may be printed, logged or drawn: one line that obeys nobody.

    Control characters, escape sequences, changes of direction and lone surrogates become escapes such as ``\\n`` and
    ``\\x1b``; longer text ends in an ellipsis.

    Args:
        limit: most characters.
    """
    text = os.fspath(text) if isinstance(text, os.PathLike) else text
    text = os.fsdecode(text) if isinstance(text, bytes) else str(text)
    if len(text) > limit:
        text = text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
    if text.isprintable():
        return text
    text = "".join(
        c if c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs" else ascii(c)[1:-1] for c in text
    )
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a file that takes the place of ``path`` only once it is written whole and on the disk.

    If the block raises, or the machine stops, whatever stood at ``path`` before is untouched. A link at ``path`` is
    replaced, and what it leads to is untouched.
    """
    if os.path.isdir(path) and not os.path.islink(path):  # found now, and not when all is written
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with _in_place_of(path, ".part") as part:
        with open(_create(part), mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside ``path``, with its ending, for a library that opens the file or fills the folder itself.

    What stands there when the block ends takes the place of ``path``; see :func:`atomic_write`. A folder takes the
    place of a folder.
    """
    with _in_place_of(path, f".part{Path(path).suffix}") as part:
        yield part


@contextmanager
def _in_place_of(path: str | os.PathLike, ending: str) -> Iterator[Path]:
    path = Path(path)
    if not path.name:  # "." or ""
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{_cut(path.name)}.{os.getpid()}_{_machine()}{ending}")
    sweep(path.parent)
    try:
        _remove(part)  # of a killed process with this number, or planted
        yield part
        for file in [part, *part.rglob("*")] if part.is_dir() else [part]:
            _flush(file)
        if part.is_dir() and path.is_dir() and not path.is_symlink():
            before = part.with_name(f"{part.name}.before")
            path.rename(before)
            part.rename(path)
            _remove(before)
        else:
            os.replace(part, path)
        _flush(path.parent)
    except OSError as error:
        if error.filename is None or error.filename == str(part):  # a full disk names none
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            _remove(part)


@cache
def _machine() -> str:
    """This machine or container: processes of others have numbers that mean nothing here."""
    with suppress(OSError):
        return f"{zlib.crc32((socket.gethostname() + os.readlink('/proc/self/ns/pid')).encode()):08x}"
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


_PART = re.compile(r"\.(.+)\.(\d+)_(\w+)\.part(\.(?!before$)\w+)?(\.before)?")
_swept: set[str] = set()


def sweep(folder: Path) -> None:
    """Once in a process for each folder: remove what processes of this machine left there when they were killed."""
    place = os.path.realpath(folder)
    if place in _swept:
        return
    _swept.add(place)
    with suppress(OSError):
        for name in sorted(os.listdir(folder)):
            found = _PART.fullmatch(name)
            if found is None or found[3] != _machine() or _is_alive(int(found[2])):
                continue
            left, target = folder / name, folder / found[1]
            with suppress(OSError):
                # Killed between the two renamings of a folder: the earlier one goes back.
                if found[5] and not os.path.lexists(target) and _cut(found[1]) == found[1]:
                    left.rename(target)
                else:
                    _remove(left)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _cut(name: str) -> str:
    """So that the name of a half-written file is no longer than a file system takes."""
    while len(os.fsencode(name)) > _COMPONENT_BYTES:
        name = name[:-1]
    return name


def _create(part: Path) -> int:
    """A new file with the rights that the umask leaves; never one that is there, nor a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.open(part, flags, 0o666)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """A file's contents onto the disk, or a folder's names: else a power cut leaves a name without contents."""
    if os.name == "posix" and not path.is_symlink() and (path.is_file() or path.is_dir()):  # to open a pipe is to wait
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def finished(made: Sequence[Path]) -> bool:
    """Whether a run has made all of these files, each after the one before."""
    if not all(path.is_file() for path in made):
        return False
    ages = [path.stat().st_mtime for path in made]
    return ages == sorted(ages)


def read_state(path: str | os.PathLike, schema: Any, fix: str) -> Any:
    """What one of our own JSON files holds.

    Args:
        schema: of :func:`misfit`.
        fix: what the user can do where it does not fit, such as "start without --resume".

    Raises:
        UserError: no regular file, more than :data:`STATE_BYTES`, not JSON, or a value that does not fit.
    """
    return parse_state(read_regular(path, STATE_BYTES), schema, shown(path), fix)


def parse_state(text: bytes | str, schema: Any, where: str, fix: str) -> Any:
    """As :func:`read_state`, of the text itself; ``where`` it stands is for the message."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # also digits by the thousand, and what is not UTF-8
        raise UserError(f"{where}: is not JSON ({shown(error, 80)}); {fix}") from None
    if reason := misfit(value, schema):
        raise UserError(f"{where}: {reason}; {fix}")
    return value


def misfit(value: Any, schema: Any, place: str = "it") -> str:
    """Why a value of JSON does not fit ``schema``, naming its place; "" where it fits.

    Args:
        schema: a type (``float`` is any finite number, ``object`` anything), None, a range of whole numbers; a tuple of
            such, one of which must fit, containers last; ``[item]``, a list; ``[a, b]``, a list of that length;
            ``{"key": ..., "key?": ..., str: ...}``: keys that must and may be there, and all others.
    """
    if isinstance(schema, tuple):
        reasons = [misfit(value, one, place) for one in schema]
        return "" if "" in reasons else reasons[-1]
    if isinstance(schema, list) and isinstance(value, list):
        if len(schema) > 1 and len(value) != len(schema):
            return f"{place} has {len(value)} values, not {len(schema)}"
        kinds = schema if len(schema) > 1 else schema * len(value)
        pairs = enumerate(zip(value, kinds, strict=True))
        return next(filter(None, (misfit(item, kind, f"{place}[{i}]") for i, (item, kind) in pairs)), "")
    if isinstance(schema, dict) and isinstance(value, dict):
        missing = [key for key in schema if key is not str and not key.endswith("?") and key not in value]
        if missing:
            return f"{place} has no {missing[0]}"
        inside = "" if place == "it" else f"{place}."
        kind_of = ((key, schema.get(key, schema.get(f"{key}?", schema.get(str, object)))) for key in value)
        return next(filter(None, (misfit(value[key], kind, inside + shown(key, 40)) for key, kind in kind_of)), "")
    if _is_a(value, schema):
        return ""
    return f"{place} is {shown(repr(value), 60)}, not {_KINDS_OF_VALUES.get(_name(schema), 'what it must be')}"


def _is_a(value: Any, schema: Any) -> bool:
    if schema is None:
        return value is None
    if isinstance(schema, range):
        return type(value) is int and value in schema
    if schema is float:
        return type(value) in (int, float) and -1e308 < value < 1e308
    return isinstance(schema, type) and (type(value) is schema or schema is object)


def _name(schema: Any) -> str:
    return schema.__name__ if isinstance(schema, type) else type(schema).__name__


_KINDS_OF_VALUES = {
    "NoneType": "null", "range": "a whole number in its range", "float": "a number", "int": "a whole number",
    "str": "a text", "bool": "true or false", "dict": "keys and values", "list": "a list",
}  # fmt: skip


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write ``value`` as JSON, atomically. NaN and infinities, which JSON does not know, become null."""
    with atomic_write(path) as file:
        json.dump(finite(value), file, indent=2)
        file.write("\n")


def finite(value: Any) -> Any:
    """``value`` as JSON can hold it: numpy and torch scalars become numbers, NaN and infinities None."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
