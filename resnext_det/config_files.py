"""The configurations that come with the package: ``configs/`` in a clone, ``resnext_det/configs/`` when installed."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UserError, nearest

_PACKAGE = Path(__file__).parent
_INSTALLED, _CLONE = _PACKAGE / "configs", _PACKAGE.parent / "configs"


def config_folder() -> Path:
    """The folder that holds ``detection/``, ``imagenet/``, ..."""
    return _INSTALLED if _INSTALLED.is_dir() else _CLONE


def list_configs() -> list[str]:
    """Names that :func:`config_path` takes, such as ``detection/coco/X_50_32x4d_C4_1x.yaml``."""
    folder = config_folder()
    files = (path for path in folder.rglob("*") if path.suffix in (".yaml", ".py"))
    return sorted(path.relative_to(folder).as_posix() for path in files)


def config_path(name: str) -> str:
    """Path of a configuration of this package, as ``cfg.merge_from_file`` and ``LazyConfig.load`` take it.

    ``name`` is relative to ``configs/``; that prefix may stay, so that a command line of the documentation works
    away from the clone.

    Raises:
        UserError: there is none of that name.
    """
    name = os.path.normpath(name).replace(os.sep, "/").removeprefix("configs/")
    known = list_configs()
    if name not in known:
        raise UserError(f"config {name}: not among the configs of this package{nearest(name, known)}")
    return str(config_folder() / name)


def find_config(file: str) -> str:
    """``file`` itself where it exists, or the package's configuration of that name where there is one; else ``file``.

    Looked up in this order, so that nothing in the package ever hides a file of the user's.
    """
    if not os.path.exists(file) and not os.path.isabs(file):
        try:
            return config_path(file)
        except UserError:
            pass
    return file
