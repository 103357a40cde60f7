"""``resnext-det make-shards``: a folder of classes as WebDataset shards."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import UserError
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="images in one folder per class")
    parser.add_argument("out", nargs="?", help="new folder for the shards")
    parser.add_argument("--per-shard", type=at_least(1), default=5000, help="images in a shard (%(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the order (%(default)s)")
    parser.add_argument("--index", metavar="FOLDER", help="only write the index of the shards in FOLDER")
    parser.add_argument("--classes", metavar="FILE", help="with --index: class names, one a line, by class number")
    args = parser.parse_args(argv)
    from ..classification.data import ImageFolder
    from ..classification.shards import index_shards
    from ..makers.folders import read_class_list
    from ..makers.shards import write_shards

    if args.index:
        if args.folder:
            raise UserError("--index FOLDER stands alone: the shards are there already")
        count = index_shards(args.index, read_class_list(args.classes) if args.classes else None)
        print(f"{args.index}: index of {count} images")
        return
    if not args.out:
        raise UserError("make_shards: name a folder of images and a new folder, or give --index FOLDER")
    image_set = ImageFolder(args.folder)
    count = write_shards(image_set, args.out, args.per_shard, args.seed)
    print(f"{args.out}: {len(image_set)} images of {len(image_set.classes)} classes in {count} shards")
