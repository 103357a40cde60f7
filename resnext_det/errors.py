"""Errors that the user can fix, and the hint for a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user can fix: the message is one line that names the file, the field and the fix.

    The command-line tools print it without a traceback and leave with exit code 2.
    """


class RunFailed(RuntimeError):
    """The machine failed, not the user: a process of the run died. The message is one line with the cause.

    The command-line tools print it without a traceback and leave with exit code 1.
    """


_COMPARED = 200  # characters: the search takes the product of two lengths


def nearest(word: str, words: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the word nearest to ``word``, or an empty string when none is near."""
    close = difflib.get_close_matches(word[:_COMPARED], [w for w in words if len(w) <= _COMPARED], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def listed(items: Iterable[Any], most: int = 10) -> str:
    """``1, 2, 3 and 4 more``: the beginning of a long list, for one line of an error message."""
    items = list(items)
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(str(item) for item in items[:most]) + rest


def counted(number: int, thing: str) -> str:
    """``1 error``, ``2 errors``, ``0 classes``."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{ending}"
