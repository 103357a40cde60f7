"""The command ``tools/check_dataset.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..files import shown
from ..images import MAX_MEGAPIXELS, POLICIES
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    """Print the findings; errors end in a :class:`UserError`, after the fixed copy is written."""
    parser = argparse.ArgumentParser(description="Check a data set in COCO's format before training on it.")
    parser.add_argument("--json", required=True, help="annotations: COCO's JSON, or another format's file or folder")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--fix", metavar="OUT", help="write a fixed copy to this new file; nothing is left out of it")
    parser.add_argument(
        "--fix-drop", action="store_true", help="with --fix: leave out images and objects that are unusable"
    )
    parser.add_argument("--policy", choices=POLICIES, default="error", help="for images that cannot be decoded whole")
    parser.add_argument("--strict", action="store_true", help="warnings are errors")
    parser.add_argument("--like", metavar="JSON", help="training set whose classes must be the same")
    parser.add_argument("--num-classes", type=int, help="classes of the model")
    parser.add_argument("--masks", action="store_true", help="every object needs a mask (MODEL.MASK_ON)")
    parser.add_argument("--keypoints", action="store_true", help="every object needs keypoints (MODEL.KEYPOINT_ON)")
    parser.add_argument("--max-detections", type=at_least(1), default=100, help="an evaluation's per image and class")
    parser.add_argument("--headers-only", action="store_true", help="do not decode the images: faster")
    parser.add_argument("--follow-links", action="store_true", help="allow links that lead out of the folder")
    parser.add_argument("--drop-unused-root", action="store_true", help="leave out an unused supercategory")
    parser.add_argument("--max-megapixels", type=float, default=MAX_MEGAPIXELS, help="larger images are errors")
    parser.add_argument("--workers", type=at_least(1), help="threads that read images; default one per core")
    parser.add_argument("--list", type=at_least(0), default=20, help="findings of a kind to list")
    parser.add_argument("--shares-with", metavar="FOLDER", help="images of another split: name those that both have")
    args = parser.parse_args(argv)
    from ..annotations.check import ClassCount, Options, inspect_coco, inspect_document, report, write_fixed
    from ..annotations.formats import read

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
    if args.json.lower().endswith(".json"):
        checked = inspect_coco(args.json, args.images, options)
    else:
        checked = inspect_document(read(args.json, args.images).document, args.json, args.images, options)
    print(report(checked))
    if args.shares_with:
        from ..annotations.formats.source import is_image
        from ..annotations.splitting import shared_images

        ours = [] if checked.images is None else [Path(args.images, name) for name in checked.images.file_names]
        ours = [path for path in ours if path.is_file()]
        theirs = sorted(path for path in Path(args.shares_with).rglob("*") if is_image(path.name))
        for one, other, kind in shared_images(ours, theirs):
            print(f"warning: {shown(one)}: {kind}: {shown(other)}; keep it in one split")
    if args.fix:
        document = write_fixed(checked, args.fix, drop=args.fix_drop)
        checked = inspect_document(document, args.fix, args.images, options, decode=False)
        print(f"{shown(args.fix)} written: {checked.errors} errors, {checked.warnings} warnings left")
    checked.raise_errors()


def _classes(json_file: str) -> list[str]:
    from ..annotations.check import inspect_coco

    like = inspect_coco(json_file, None)
    if like.categories is None:
        like.raise_errors()
    return [] if like.categories is None else like.categories.names
