"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a file that takes the place of ``path`` only once it is written whole and on the disk.

    If the block raises, or the machine stops, whatever stood at ``path`` before is untouched.
    """
    path = Path(path)
    if not path.name:  # "." or ""
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename is None:  # a full disk names none
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """The file is on the disk; so must be its name, or a power cut leaves the old one."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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


def shown(text: object) -> str:
    """``text`` from data, fit for a terminal, a log or a drawing: control characters are escaped as Python does."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))
