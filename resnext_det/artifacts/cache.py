"""What can be computed again, kept in the user's cache: read back only if nobody else can have written it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import atomic_write, open_regular, shown

logger = logging.getLogger(__name__)

MOST = 8
"""Files of a kind that are kept, those used last."""


def place(kind: str, *facts: Any) -> Path:
    """Where something of a kind is kept that depends on ``facts``, plain values: ``~/.cache/resnext_det/kind/...``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "resnext_det", kind, name)


def recall(path: Path) -> bytes | None:
    """What :func:`keep` wrote there; None if there is nothing, or nothing whole of this user alone."""
    if not hasattr(os, "geteuid"):  # Windows has no such rights
        return None
    with suppress(OSError, UserError), open_regular(path) as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            logger.warning("%s: not used, others than you can have written it; remove it", shown(path))
            return None
        digest, data = file.read(32), file.read()
        if hashlib.sha256(data).digest() == digest:
            os.utime(path)
            return data
    return None


def keep(path: Path, data: bytes) -> None:
    """Write it for :func:`recall`, and remove the oldest of its kind. What cannot be written is a line in the log."""
    if not hasattr(os, "geteuid"):
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_write(path, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(hashlib.sha256(data).digest() + data)
        kept = sorted(path.parent.iterdir(), key=lambda other: other.stat().st_mtime)
        for old in kept[:-MOST]:
            old.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        logger.warning("%s: cannot be kept (%s), so it is made at every start; set XDG_CACHE_HOME",
                       shown(path.parent), reason)  # fmt: skip
