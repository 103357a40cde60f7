"""``resnext-det make-imagenet-val``: sort ImageNet's validation images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..makers.imagenet_val import read_labels, sort_images


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="folder with the unpacked ILSVRC2012_img_val.tar")
    parser.add_argument(
        "labels", help="folder of the development kit, a file with a WordNet id per image, or LOC_val_solution.csv"
    )
    parser.add_argument("--out", default="datasets/imagenet/val", help="new folder (%(default)s)")
    args = parser.parse_args(argv)
    labels = read_labels(args.labels)
    classes = sort_images(args.images, labels, args.out)
    print(f"{args.out}: {len(labels)} images in {classes} class folders")
