"""``resnext-det make-digits``: the quickstart's data, real handwritten digits alone and in scenes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..makers.digits import Settings, make_digits
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files, and say what is in them."""
    parser = argparse.ArgumentParser(
        description="Write the quickstart's data: handwritten digits, alone and in scenes."
    )
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument("--output", type=Path, default=Path(root, "digits"), help="folder to write (%(default)s)")
    parser.add_argument("--train", type=at_least(1), default=Settings.train, help="training scenes (%(default)s)")
    parser.add_argument("--minival", type=at_least(1), default=Settings.minival, help="test scenes (%(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=Settings.seed, help="other images (%(default)s)")
    parser.add_argument("--size", type=at_least(1), default=Settings.size, help="longest side of a scene (%(default)s)")
    args = parser.parse_args(argv)
    written = make_digits(args.output, Settings(args.train, args.minival, args.seed, args.size))
    print(f"{args.output}: {'written' if written else 'already there with these settings'}")
