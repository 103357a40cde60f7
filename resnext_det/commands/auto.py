"""``resnext-det auto``: from a folder of labels to a trained and evaluated detector."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .arguments import at_least, real


def main(argv: Sequence[str] | None = None) -> None:
    """Read, check, split, choose settings, train, evaluate, export; called again, it resumes."""
    parser = argparse.ArgumentParser(
        description="Train a detector on labeled images: settings are chosen from the data and explained."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="labels: COCO, YOLO, VOC, CVAT or LabelMe")
    parser.add_argument("--minutes", type=real(above=0), default=30, help="for all of it (%(default)g)")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where all goes (output/auto/NAME)")
    parser.add_argument("--images", metavar="FOLDER", help="images, where they are not beside the labels")
    parser.add_argument(
        "--weights", metavar="FILE",
        help="file, torchvision://NAME or timm://NAME; none: random; default: torchvision's, where fetched before",
    )  # fmt: skip
    parser.add_argument("--seed", type=at_least(0), default=0, help="of split and training (%(default)s)")
    args = parser.parse_args(argv)
    from ..auto.run import Request, run

    output = args.output or Path("output/auto") / (args.folder.resolve().stem or "data")
    run(Request(args.folder, args.images, output, args.minutes, args.weights, args.seed))
