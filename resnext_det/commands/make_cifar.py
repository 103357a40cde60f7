"""``resnext-det make-cifar``: CIFAR's archives as folders of images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", help="cifar-10-python.tar.gz, cifar-100-binary.tar.gz, ..., or a tar of images")
    parser.add_argument("out", help="new folder: datasets/cifar10 or datasets/cifar100")
    args = parser.parse_args(argv)
    from ..makers.cifar import unpack

    counts = unpack(args.archive, args.out)
    print(f"{args.out}: {counts['train']} training and {counts['test']} test images")
