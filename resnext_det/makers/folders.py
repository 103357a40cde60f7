"""What makers read and write: a folder that appears only when it is complete, a list of class names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` when the block ends, and is removed when it fails.

    Raises:
        UserError: ``path`` is there already and is not an empty folder.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{path}: is there already; remove it or name another folder")
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if path.is_dir():
            path.rmdir()
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
