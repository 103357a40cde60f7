"""ImageNet-5K (paper Sec. 5.2): the 1,000 classes and the 4,000 others with most images, as a folder of links."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from ..files import atomic_write
from .folders import is_made, new_folder, recipe


def largest_classes(full: str | os.PathLike[str], known: set[str], count: int) -> list[str]:
    """The ``count`` class folders of ``full`` with most files that are not among ``known``; equal ones by name.

    Raises:
        UserError: fewer folders than that.
    """
    sizes = {entry.name: len(os.listdir(entry)) for entry in os.scandir(full) if entry.is_dir()}
    others = sorted(sizes.keys() - known, key=lambda name: (-sizes[name], name))
    if len(others) < count:
        raise UserError(f"{full}: {len(others)} classes beside the {len(known)} known ones, not {count}")
    return others[:count]


def link_classes(places: dict[str, Path], out: str | os.PathLike) -> None:
    """A folder of links ``out/class -> places[class]``, and the list ``out.txt``."""
    made_by = recipe("make-imagenet5k", **{name: place.resolve() for name, place in places.items()})
    if not is_made(out, made_by):
        with new_folder(out, made_by) as folder:
            for name, place in places.items():
                (folder / name).symlink_to(place.resolve(), target_is_directory=True)
    with atomic_write(f"{out}.txt") as file:
        file.write("".join(f"{name}\n" for name in sorted(places)))
