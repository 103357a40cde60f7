"""``resnext-det make-shards``: a folder of classes, or labels of a detection set, as WebDataset shards."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import UserError
from ..files import shown
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="images in one folder per class; with --labels labels of any format")
    parser.add_argument("out", nargs="?", help="new folder for the shards")
    parser.add_argument("--per-shard", type=at_least(1), default=5000, help="images in a shard (%(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the order (%(default)s)")
    parser.add_argument("--labels", action="store_true", help="COCO, YOLO, VOC, CVAT or LabelMe; shards for detection")
    parser.add_argument("--images", metavar="FOLDER", help="with --labels: images that are not beside them")
    parser.add_argument("--index", metavar="FOLDER", help="only write the index of the shards in FOLDER")
    parser.add_argument("--classes", metavar="FILE", help="with --index: class names, one a line, by class number")
    args = parser.parse_args(argv)
    from ..classification.data import ImageFolder
    from ..classification.shards import index_shards
    from ..makers.folders import read_class_list
    from ..makers.shards import index_labeled_shards, write_labeled_shards, write_shards

    if args.index:
        if args.folder:
            raise UserError("--index FOLDER stands alone: the shards are there already")
        names = read_class_list(args.classes) if args.classes else None
        if args.labels:
            named = [{"id": number, "name": name} for number, name in enumerate(names or (), start=1)]
            count = index_labeled_shards(args.index, named or None)
        else:
            count = index_shards(args.index, names)
        print(f"{args.index}: index of {count} images")
        return
    if not args.out:
        raise UserError("make_shards: name a folder of images and a new folder, or give --index FOLDER")
    if args.labels:
        from ..annotations.formats import read_checked, recognize, splits_of

        print(f"{shown(args.folder)}: {recognize(args.folder)}")
        sources = {split: read_checked(path, args.images) for split, path in splits_of(args.folder).items()}
        made = write_labeled_shards(sources, args.out, args.per_shard, args.seed)
        for (place, count), source in zip(made.items(), sources.values(), strict=True):
            print(f"{place}: {len(source.document['images'])} images in {count} shards")
            for note in source.notes:
                print(f"  {note}")
        return
    image_set = ImageFolder(args.folder)
    count = write_shards(image_set, args.out, args.per_shard, args.seed)
    print(f"{args.out}: {len(image_set)} images of {len(image_set.classes)} classes in {count} shards")
