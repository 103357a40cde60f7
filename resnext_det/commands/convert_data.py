"""``resnext-det convert-data``: labels of one format as another, with their images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..annotations import LABEL_FORMATS
from ..files import shown
from ..makers.folders import is_made, new_folder, recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Read every split, check it as training does, write it."""
    parser = argparse.ArgumentParser(description="Write labels of COCO, YOLO, VOC, CVAT or LabelMe in another form.")
    parser.add_argument("input", metavar="IN", help="file or folder; data.yaml:val for one split of YOLO's")
    parser.add_argument("output", metavar="OUT", type=Path, help="new folder")
    parser.add_argument("--to", choices=LABEL_FORMATS, required=True, help="format to write")
    parser.add_argument("--images", metavar="FOLDER", help="images, where they are not beside the labels")
    args = parser.parse_args(argv)
    from ..annotations.formats import read_checked, recognize, splits_of, write

    print(f"{shown(args.input)}: {recognize(args.input)}")
    sources = {split: read_checked(path, args.images) for split, path in splits_of(args.input).items()}
    made_by = recipe("convert-data", args.input, *{s.image_root for s in sources.values()}, to=args.to)
    if is_made(args.output, made_by):
        print(f"{shown(args.output)}: is there already, made of the same files")
        return
    with new_folder(args.output, made_by) as part:
        lost = write(sources, part, args.to)
    for split, source in sources.items():
        counts = f"{len(source.document['images'])} images, {len(source.document.get('annotations', ()))} objects"
        print(f"{args.output}, {split}: {counts}")
        for note in source.notes:
            print(f"  {note}")
    for sentence in lost:
        print(f"  {sentence}: {args.to} cannot hold them")
