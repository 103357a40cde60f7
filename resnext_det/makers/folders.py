"""What makers read and write: a folder that appears only when it is complete, a list of class names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic_path, read_state, write_json

MADE_BY = ".made_by.json"
"""In such a folder: the command, its settings, and which files it read."""


def recipe(command: str, *inputs: str | os.PathLike, **settings: Any) -> dict[str, Any]:
    """What decides a folder's contents: the command, its settings, and name, size and time of every file it reads."""
    digest = hashlib.sha256()
    for place in map(Path, inputs):
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for file in files:
            status = os.stat(file) if file.exists() else None
            facts = (str(file), status and (status.st_size, status.st_mtime_ns))
            digest.update(repr(facts).encode(errors="surrogateescape"))
    return {"command": command, "settings": {k: str(v) for k, v in settings.items()}, "read": digest.hexdigest()}


def is_made(path: str | os.PathLike, by: Mapping[str, Any]) -> bool:
    """Whether ``path`` is the folder that this very :func:`recipe` has made, all of it."""
    file = Path(path) / MADE_BY
    try:
        return file.is_file() and read_state(file, dict, "") == by
    except UserError:
        return False


@contextmanager
def new_folder(path: str | os.PathLike, by: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` when the block ends, and is removed when it fails.

    Args:
        by: its :func:`recipe`.

    Raises:
        UserError: ``path`` is there already and is not an empty folder.
    """
    path = Path(path)
    if not path.name:  # "." or ""
        raise UserError(f"{str(path)!r} is the folder we are in; name a new one")
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: is there already; remove it or name another folder")
    with atomic_path(path) as part:
        part.mkdir()
        yield part
        write_json(part / MADE_BY, by)


def read_class_list(path: str | os.PathLike) -> list[str]:
    """Class names from a text file, one a line; blank lines are skipped.

    Raises:
        UserError: no such file, no names, or a name twice.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; it holds one class name a line")
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; it holds one class name a line") from error
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: {'names a class twice' if names else 'holds no class names'}")
    return names
