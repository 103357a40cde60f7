"""What processes of a run hear when something fails in one of them."""

from __future__ import annotations

import faulthandler
import json
from collections.abc import Callable
from pathlib import Path

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from detectron2.utils import comm

from resnext_det.engine.causes import cause_of

PATIENCE = 300
"""Seconds after which a process that waits for another is ended: it would wait for ever."""


class Reports:
    """Collects, in one process, what each of several acts raised; ``write`` leaves it for :func:`reports_of_all`."""

    def __init__(self) -> None:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        self._report: dict[str, str] = {}

    def __call__(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            cause = cause_of(error)
            self._report[name] = f"{type(cause).__name__}: {cause}"

    def write(self, folder: Path) -> None:
        """For all processes of a run, once the last act is over."""
        (folder / f"reported_{comm.get_rank()}.json").write_text(json.dumps(self._report))


def reports_of_all(folder: Path, processes: int = 2) -> dict[str, str]:
    """{act: "Kind: message"}, which must be the same in all processes."""
    said = [json.loads((folder / f"reported_{rank}.json").read_text()) for rank in range(processes)]
    assert all(other == said[0] for other in said)
    return said[0]


def block(*parts: str | Path) -> Path:
    """Make a folder where a file should go, so that the file cannot be written; returns the folder it is in."""
    path = Path(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path.parent
