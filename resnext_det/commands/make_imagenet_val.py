"""``resnext-det make-imagenet-val``: sort ImageNet's validation images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..makers.imagenet_val import read_labels, sort_pictures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", help="folder with the unpacked ILSVRC2012_img_val.tar")
    parser.add_argument(
        "labels", help="folder of the development kit, a file with a WordNet id per picture, or LOC_val_solution.csv"
    )
    parser.add_argument("--out", default="datasets/imagenet/val", help="new folder (%(default)s)")
    args = parser.parse_args(argv)
    labels = read_labels(args.labels)
    classes = sort_pictures(args.pictures, labels, args.out)
    print(f"{args.out}: {len(labels)} pictures in {classes} class folders")
