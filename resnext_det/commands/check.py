"""The command ``tools/check_dataset.py``: one set, or all that a run's config names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, counted
from ..files import is_file, shown
from ..images import MAX_MEGAPIXELS, POLICIES
from .arguments import TRUST_PICKLE, add_output_dir, at_least, check_output_dir, real

if TYPE_CHECKING:
    from ..annotations.check import CheckedDataset, Options


def main(argv: Sequence[str] | None = None) -> None:
    """Print the findings; errors end in a :class:`UserError`, after the fixed copy is written."""
    parser = argparse.ArgumentParser(description="Check data sets before training on them.")
    parser.add_argument("--json", help="annotations: COCO's JSON, or another format's file or folder")
    parser.add_argument("--images", help="folder of the images; default: where the format has them, of every split")
    parser.add_argument(
        "--config-file", metavar="FILE",
        help="a run's YAML: look for all that its model and evaluation need, in its sets or in that of --json",
    )  # fmt: skip
    parser.add_argument("--fix", metavar="OUT", help="write a fixed copy to this new file; nothing is left out of it")
    parser.add_argument(
        "--fix-drop", action="store_true", help="with --fix: leave out images and objects that are unusable"
    )
    parser.add_argument("--policy", choices=POLICIES, default="error", help="for images that cannot be decoded whole")
    parser.add_argument("--strict", action="store_true", help="warnings are errors")
    parser.add_argument("--like", metavar="JSON", help="training set whose classes must be the same")
    parser.add_argument("--num-classes", type=at_least(1), help="classes of the model")
    parser.add_argument("--masks", action="store_true", help="every object needs a mask (MODEL.MASK_ON)")
    parser.add_argument("--keypoints", action="store_true", help="every object needs keypoints (MODEL.KEYPOINT_ON)")
    parser.add_argument("--max-detections", type=at_least(1), default=100, help="an evaluation's per image and class")
    parser.add_argument("--headers-only", action="store_true", help="do not decode the images: faster")
    parser.add_argument("--follow-links", action="store_true", help="allow links that lead out of the folder")
    parser.add_argument("--drop-unused-root", action="store_true", help="leave out an unused supercategory")
    parser.add_argument("--max-megapixels", type=real(above=0), default=MAX_MEGAPIXELS, help="larger images are errors")
    parser.add_argument("--workers", type=at_least(1), help="threads that read images; default one per core")
    parser.add_argument("--list", type=at_least(0), default=20, help="findings of a kind to list")
    add_output_dir(parser)
    parser.add_argument("--shares-with", metavar="FOLDER", help="images of another split: name those that both have")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over those of the config")
    args = parser.parse_args(argv)
    check_output_dir(args.output_dir)
    if not (args.json or args.config_file) or args.images and not args.json:
        raise UserError("check: give --json and --images, or --config-file with the sets of a run")
    if args.opts and not args.config_file:
        raise UserError(f"check: {shown(args.opts[0])} is a setting of a run: give its --config-file")
    of_one_set = args.fix or args.shares_with or args.output_dir or args.json and args.config_file
    if of_one_set and not (args.json and args.images):
        raise UserError(
            "check: --fix, --shares-with, --output-dir and --json with --config-file are for one set: give --json and "
            "--images"
        )
    from ..annotations.check import ClassCount, Options, inspect_document, report, write_fixed

    options = Options(
        policy=args.policy,
        strict=args.strict,
        decode=not args.headers_only,
        follow_links=args.follow_links,
        drop_unused_root=args.drop_unused_root,
        max_megapixels=args.max_megapixels,
        workers=args.workers,
        listed=args.list,
        masks=args.masks,
        keypoints=args.keypoints,
        for_training=args.masks or args.keypoints,
        max_detections=args.max_detections,
        model_classes=None if args.num_classes is None else ClassCount(args.num_classes),
        expected_names=_classes(args.like) if args.like else None,
    )
    if args.output_dir and (args.config_file or args.fix or args.shares_with):
        raise UserError("check: --output-dir keeps the check of one set: leave out --config-file, --fix, --shares-with")
    wrong: list[str] = []

    def tell(where: str, text: str, errors: int) -> None:
        print(text)
        if errors:
            wrong.append(f"{shown(where)}: {counted(errors, 'error')}, listed above")

    if args.output_dir:
        from ..annotations.kept_report import kept_report

        found = kept_report(args.output_dir, args.json, args.images, options, lambda: next(_checks(args, options))[1])
        tell(args.json, *found)
    else:
        for where, checked in _checks(args, options):
            tell(where, report(checked), checked.errors)
    if args.shares_with:
        from ..annotations.formats import read
        from ..annotations.formats.source import is_image
        from ..annotations.splitting import shared_images

        ours = [] if checked.images is None else [Path(args.images, name) for name in checked.images.file_names]
        ours = [path for path in ours if is_file(path)]
        theirs = sorted(path for path in Path(args.shares_with).rglob("*") if is_image(path.name))
        if not theirs:  # shards, perhaps
            labeled = read(args.shares_with)
            theirs = [Path(labeled.image_root, image["file_name"]) for image in labeled.document["images"]]
        for one, other, kind in shared_images(ours, theirs):
            print(f"warning: {shown(one)}: {kind}: {shown(other)}; keep it in one split")
    if args.fix:
        document = write_fixed(checked, args.fix, drop=args.fix_drop)
        checked = inspect_document(document, args.fix, args.images, options, decode=False)
        left = f"{counted(checked.errors, 'error')}, {counted(checked.warnings, 'warning')} left"
        print(f"{shown(args.fix)} written: {left}")
        checked.raise_errors()
    elif wrong:
        raise UserError("; ".join(wrong))


def _checks(args: argparse.Namespace, options: Options) -> Iterator[tuple[str, CheckedDataset]]:
    """(a file or the name of a set, what was found in it) of what the flags name."""
    from ..annotations.check import inspect_coco, inspect_document
    from ..annotations.formats import read, recognize, splits_of

    if args.config_file:
        from ..detection.config import setup  # torch takes seconds to import
        from ..detection.data.inspection import inspect_sets

        cfg = setup(args.config_file, args.opts)
        one = (args.json, args.images) if args.json else None
        yield from inspect_sets(cfg, options, one, trust_pickle=args.trust_pickle)
    elif args.images is None:
        for path in splits_of(args.json).values():
            source = read(path)
            yield path, inspect_document(source.document, path, source.image_root, options)
    elif args.json.lower().endswith(".json") and not (Path(args.json).is_file() and recognize(args.json) != "coco"):
        yield args.json, inspect_coco(args.json, args.images, options)
    else:
        yield args.json, inspect_document(read(args.json, args.images).document, args.json, args.images, options)


def _classes(json_file: str) -> list[str]:
    from ..annotations.check import inspect_coco

    like = inspect_coco(json_file, None)
    if like.categories is None:
        like.raise_errors()
    return [] if like.categories is None else like.categories.names
