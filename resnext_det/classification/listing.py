"""What a folder of class folders holds, listed once for all processes and kept while its folders stay as they are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.column_file import Unusable, cache_file, kept, map_arrays, recalled, write_arrays
from ..annotations.dataset import Texts
from ..engine.processes import decided_by_main
from ..errors import UserError
from ..files import misfit
from ..images import IMAGE_SUFFIXES

_KEY = " ".join(["listing 1", *sorted(IMAGE_SUFFIXES)])
_COUNTS = ("linked", "hidden", "strays")
_TEXTS = {"names", "files", "stray", "folders", "links"}
SHOWN = 5  # stray names that are kept


@dataclass(frozen=True)
class Listing:
    """A folder's images, by class and then by folder and name, and what else is in it.

    Attributes:
        names: of the class folders, sorted.
        files: (files,) paths below the folder.
        labels: (files,) int64 positions in ``names``.
        stray: some of the files that are no images; ``counts["strays"]`` is their number.
        folders, times: those that were listed, and when they were changed last, in ns.
        links, targets: links below them; what each leads to: 0 nothing, 1 a file, 2 a folder.
        counts: of "linked" and "hidden" entries below the class folders, and of "strays".
    """

    names: Texts
    files: Texts
    labels: np.ndarray
    stray: Texts
    folders: Texts
    times: np.ndarray
    links: Texts
    targets: np.ndarray
    counts: Mapping[str, int]

    def holds(self, root: str) -> bool:
        """Whether nothing has come, gone or been renamed since."""
        try:
            times = [_time(os.path.join(root, folder)) for folder in self.folders]
        except OSError:
            return False
        targets = (_target(os.path.join(root, link)) for link in self.links)
        return times == self.times.tolist() and list(targets) == self.targets.tolist()


class Paths(Sequence[str]):
    """The texts as paths below ``root``; no more than one of them is an object at a time."""

    def __init__(self, root: str | os.PathLike, names: Texts) -> None:
        self.root, self.names = os.fspath(root), names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        return os.path.join(self.root, self.names[index])

    def __iter__(self) -> Iterator[str]:
        return (os.path.join(self.root, name) for name in self.names)


def listing_of(root: str, folder: str | os.PathLike | None) -> Listing:
    """The listing of ``root``, for all processes; the main process keeps it in ``folder/cache``, if one is given.

    Raises:
        UserError: no such folder, or one that cannot be read.
    """
    if folder is None:
        return list_folder(root)
    file = cache_file(folder, root, "listing")
    own: list[Listing] = []
    decided_by_main(lambda: own.append(_known(root, file) or _made(root, file)))
    return own[0] if own else _known(root, file) or list_folder(root)  # another machine may not see this folder


def _known(root: str, file: Path) -> Listing | None:
    def read(path: Path) -> Listing:
        columns, counts, _ = map_arrays(path, _KEY)
        columns = {key: value for key, value in columns.items() if isinstance(value, Texts) == (key in _TEXTS)}
        if misfit(counts, dict.fromkeys(_COUNTS, int)) or set(columns) != {*_TEXTS, "labels", "times", "targets"}:
            raise Unusable("is damaged")
        return Listing(**columns, counts=counts)  # type: ignore[arg-type]

    found = recalled(file, read)
    return found if found is not None and found.holds(root) else None


def _made(root: str, file: Path) -> Listing:
    begun = time.time_ns()
    found = list_folder(root)
    if found.times.max() < begun:  # else a name may have come since, and left no later time
        columns = {name: value for name, value in vars(found).items() if name != "counts"}
        kept(file, lambda path: write_arrays(path, columns, _KEY, found.counts))
    return found


def list_folder(root: str) -> Listing:
    """Look through all class folders, at any depth, links followed as torchvision does.

    What is hidden, and a link into itself, is left out.

    Raises:
        UserError: no such folder, or one that cannot be read.
    """
    if not os.path.isdir(root):
        raise UserError(f"image folder {root}: no such folder; set DATASETS.TRAIN or DATASETS.TEST")
    folders: dict[str, int] = {}
    links: dict[str, int] = {}
    counts = dict.fromkeys(_COUNTS, 0)

    def entries(here: str) -> Iterator[tuple[str, int]]:
        """(path below ``root``, what it is as :func:`_target` says) of what is in a folder, whose time is noted."""
        place, start = os.path.join(root, here), here and f"{here}/"
        folders[here] = _time(place)
        with os.scandir(place) as scanned:
            for entry in scanned:
                if entry.name.startswith("."):
                    counts["hidden"] += bool(here)
                elif entry.is_symlink():
                    counts["linked"] += bool(here)
                    links[start + entry.name] = _target(entry.path)
                    yield start + entry.name, links[start + entry.name]
                else:
                    yield start + entry.name, 2 if entry.is_dir() else int(entry.is_file())

    def below(folder: str) -> list[str]:
        """Its files at any depth, sorted by folder, then name."""
        files, waiting, walked = [], [folder], set()
        while waiting:
            here, deeper = waiting.pop(), []
            place = os.path.realpath(os.path.join(root, here))
            if place not in walked:
                walked.add(place)
                for name, kind in entries(here):
                    if kind:
                        (files if kind == 1 else deeper).append(name)
            waiting += sorted(deeper, reverse=True)
        return sorted(files, key=None if len(walked) == 1 else lambda path: path.replace("/", "\0"))

    files: list[str] = []
    stray: list[str] = []
    numbers: list[int] = []
    try:
        top = sorted(entries(""))
        names = [name for name, kind in top if kind == 2]
        stray += [name for name, kind in top if kind != 2]
        for name in names:
            found = below(name)
            images = [path for path in found if path[path.rfind(".") :].lower() in IMAGE_SUFFIXES]
            numbers.append(len(images))
            files += images
            if len(images) < len(found):
                stray += sorted(set(found) - set(images))
    except OSError as error:
        raise UserError(f"image folder {error.filename}: cannot be listed ({error.strerror})") from None
    counts["strays"] = len(stray)
    return Listing(
        names=Texts.of(names),
        files=Texts.of(files),
        labels=np.repeat(np.arange(len(names)), np.array(numbers, dtype=np.int64)),
        stray=Texts.of(stray[:SHOWN]),
        folders=Texts.of(folders),
        times=np.array(list(folders.values()), dtype=np.int64),
        links=Texts.of(links),
        targets=np.array(list(links.values()), dtype=np.int64),
        counts=counts,
    )


def _time(path: str) -> int:
    return min(os.stat(path).st_mtime_ns, (1 << 63) - 1)  # some file systems know later years


def _target(path: str) -> int:
    return 2 if os.path.isdir(path) else int(os.path.isfile(path))
