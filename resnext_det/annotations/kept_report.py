"""The report of a check, kept in a folder: a set of which nothing has changed is not looked through again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from .. import __version__
from ..files import misfit, places_looked_at
from .check import CheckedDataset, Options, report
from .column_file import Unusable, cache_file, kept, key_of, map_arrays, recalled, write_arrays
from .dataset import Texts
from .formats import state_of

_FACTS = {"report": str, "errors": int, "state": str, "since": int}


def kept_report(
    folder: str | os.PathLike, json_file: str, image_root: str, options: Options, look: Callable[[], CheckedDataset]
) -> tuple[str, int]:
    """(the report of what ``look`` finds in a set, the number of its errors).

    Both come from ``folder/cache`` while the labels have the same content, all images their sizes and times, and all
    their folders their times.
    """
    file = cache_file(folder, json_file, "report", image_root, repr(options))
    key = key_of(__version__, json_file, os.path.abspath(image_root))

    def read(path: Path) -> tuple[str, int]:
        columns, facts, _ = map_arrays(path, key)
        places = columns.get("places")
        if misfit(facts, _FACTS) or not isinstance(places, Texts):
            raise Unusable("is damaged")
        state, newest = state_of(places)
        if state != facts["state"] or newest >= facts["since"]:
            raise Unusable("was made when labels or images were others")
        return facts["report"], facts["errors"]

    if found := recalled(file, read):
        return found
    since = time.time_ns()
    with places_looked_at() as places:
        checked = look()
    root = os.path.abspath(image_root)
    images = set() if checked.images is None else {os.path.join(root, name) for name in checked.images.file_names}
    places |= images | {os.path.dirname(path) for path in images} | {root}
    state, newest = state_of(places)
    text, errors = report(checked), checked.errors
    facts = {"report": text, "errors": errors, "state": state, "since": since}
    if newest < since:
        kept(file, lambda path: write_arrays(path, {"places": Texts.of(sorted(places))}, key, facts))
    return text, errors
