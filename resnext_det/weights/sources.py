"""Weights that torchvision and timm publish, fetched by their own code: ``torchvision://NAME`` and ``timm://NAME``."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from .metadata import Metadata


def locate(path_or_uri: str | os.PathLike) -> tuple[Path, Metadata]:
    """The local file of a path or URI, and what its publisher says of it (nothing for a path)."""
    text = os.fspath(path_or_uri)
    scheme, separator, name = text.partition("://")
    if not separator:
        return Path(text), {}
    raise UserError(f"{text}: unknown kind of address; give a file, torchvision://NAME or timm://NAME")
