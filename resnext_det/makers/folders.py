"""A folder that appears only when it is complete."""

from __future__ import annotations

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
    if not path.name:  # "." or ""
        raise UserError(f"{str(path)!r} is the folder we are in; name a new one")
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
