"""``resnext-det make-imagenet5k``: choose ImageNet-5K's classes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("full", help="the full ImageNet (22K), unpacked: one folder per class")
    parser.add_argument("imagenet", help="ImageNet-1K's training images: they serve its classes")
    parser.add_argument("--out", default="datasets/imagenet5k/train", help="new folder (%(default)s)")
    parser.add_argument(
        "--extra", type=at_least(0), default=4000, help="classes beside those of ImageNet-1K (%(default)s)"
    )
    parser.add_argument("--classes", metavar="FILE", help="all class names, one a line, instead of the largest")
    args = parser.parse_args(argv)
    from ..makers.folders import read_class_list
    from ..makers.imagenet5k import largest_classes, link_classes

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
