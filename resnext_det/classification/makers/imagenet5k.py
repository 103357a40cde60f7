"""ImageNet-5K (paper Sec. 5.2): the 1,000 classes and the 4,000 others with most pictures, as a folder of links."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ...engine.cli import at_least
from ...errors import UserError
from ...files import atomic_write
from .folders import new_folder
from .shards import read_class_list


def largest_classes(full: str | os.PathLike, known: set[str], count: int) -> list[str]:
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
    with new_folder(out) as folder:
        for name, place in places.items():
            (folder / name).symlink_to(place.resolve(), target_is_directory=True)
    with atomic_write(f"{out}.txt") as file:
        file.write("".join(f"{name}\n" for name in sorted(places)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("full", help="the full ImageNet (22K), unpacked: one folder per class")
    parser.add_argument("imagenet", help="ImageNet-1K's training pictures: they serve its classes")
    parser.add_argument("--out", default="datasets/imagenet5k/train", help="new folder (%(default)s)")
    parser.add_argument(
        "--extra", type=at_least(0), default=4000, help="classes beside those of ImageNet-1K (%(default)s)"
    )
    parser.add_argument("--classes", metavar="FILE", help="all class names, one a line, instead of the largest")
    args = parser.parse_args(argv)
    for folder in (args.full, args.imagenet):
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder")
    known = {entry.name for entry in os.scandir(args.imagenet) if entry.is_dir()}
    names = read_class_list(args.classes) if args.classes else [*known, *largest_classes(args.full, known, args.extra)]
    places = {name: Path(args.imagenet if name in known else args.full) / name for name in names}
    missing = [name for name, place in places.items() if not place.is_dir()]
    if missing:
        raise UserError(f"{args.full}: no folder {missing[0]} ({len(missing)} such) of the class list")
    link_classes(places, args.out)
    print(f"{args.out}: {len(places)} classes, {sum(name in known for name in names)} of them ImageNet-1K's")
