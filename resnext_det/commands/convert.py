"""The command ``tools/convert_weights.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .arguments import TRUST_PICKLE

TARGETS = ("native", "torchvision", "timm", "detectron2")

DESCRIPTION = """Convert a file of weights.

IN is a .pth, .pkl or .safetensors file of torchvision, timm, pretrainedmodels, detectron2 or this package, or
torchvision://NAME, timm://NAME; or a checkpoint that has such a network in it, as those of self-supervised learning do.
OUT ends in .pth or .safetensors, with --to detectron2 in .pkl. What IN is gets detected and printed.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Convert, and print the kind of the file and the parts left out."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument("--to", choices=TARGETS, default="native", help="whose names OUT has (default: native)")
    parser.add_argument("--branch", metavar="NAME", default="", help="which network, where IN holds several: encoder_q")
    parser.add_argument("--trust-pickle", action="store_true", help=TRUST_PICKLE)
    args = parser.parse_args(argv)
    from ..weights.conversion import convert, summary

    checkpoint, dropped = convert(args.source, args.target, args.to, trust_pickle=args.trust_pickle, branch=args.branch)
    print(summary(checkpoint))
    if dropped:
        print("left out: " + ", ".join(f"{part} {count}" for part, count in dropped.items()))
    print(f"wrote {args.target}")
