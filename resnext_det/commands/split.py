"""``resnext-det split``: training, validation and test sets, or folds, of one labeled set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files import shown, write_json
from ..makers.folders import is_made, new_folder, recipe
from .arguments import at_least, real


def main(argv: Sequence[str] | None = None) -> None:
    """Write one COCO file for each split; the images stay where they are."""
    parser = argparse.ArgumentParser(
        description="Split a labeled set: stratified by class, near-duplicate images kept together."
    )
    parser.add_argument("input", metavar="IN", help="labels: COCO, YOLO, VOC, CVAT or LabelMe")
    parser.add_argument("output", metavar="OUT", type=Path, help="new folder for instances_SPLIT.json")
    parser.add_argument("--images", metavar="FOLDER", help="images, where they are not beside the labels")
    parser.add_argument(
        "--val", type=real(above=0, below=1), default=0.2, help="share of the validation set (%(default)s)"
    )
    parser.add_argument("--test", type=real(at_least=0, below=1), default=0.0, help="share of a test set (none)")
    parser.add_argument("--folds", type=at_least(2), help="so many folds, in place of --val and --test")
    parser.add_argument("--seed", type=at_least(0), default=0, help="another seed is another split (%(default)s)")
    args = parser.parse_args(argv)
    from ..annotations.formats import read_checked, recognize
    from ..annotations.splitting import split_document

    if not args.val + args.test < 1:
        raise UserError(f"--val {args.val:g}, --test {args.test:g}: give shares whose sum is below 1")
    shares = {"train": 1 - args.val - args.test, "val": args.val, **({"test": args.test} if args.test else {})}
    if args.folds:
        shares = {f"fold{k}": 1 / args.folds for k in range(args.folds)}
    print(f"{shown(args.input)}: {recognize(args.input)}")
    source = read_checked(args.input, args.images)
    splits = split_document(source.document, source.image_root, shares, args.seed)
    if args.folds:
        splits = {name: part for k in range(args.folds) for name, part in _fold(splits, f"fold{k}").items()}
    settings = {"shares": shares, "seed": args.seed}
    made_by = recipe("split", args.input, source.image_root, **settings)
    if not is_made(args.output, made_by):
        with new_folder(args.output, made_by) as part:
            for name, document in splits.items():
                write_json(part / f"instances_{name}.json", document)
    for name, document in splits.items():
        counts = f"{len(document['images'])} images, {len(document['annotations'])} objects"
        print(f"{args.output / f'instances_{name}.json'}: {counts}")
    print(f"images: {source.image_root}")


def _fold(folds: dict[str, dict], name: str) -> dict[str, dict]:
    others = [part for other, part in folds.items() if other != name]
    train = {**others[0], **{key: [r for part in others for r in part[key]] for key in ("images", "annotations")}}
    return {f"{name}_train": train, f"{name}_val": folds[name]}
