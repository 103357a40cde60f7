"""``resnext-det analyze``: the paper's Table 1 for a network, its Table 2, its Figure 4."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..errors import UserError
from .arguments import at_least


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``tools/analyze_model.py``."""
    parser = argparse.ArgumentParser(description="Print the paper's Table 1 for a network, Table 2 or Figure 4.")
    parser.add_argument("name", nargs="?", help="such as resnext50_32x4d; resnext_det.list_models() lists more")
    parser.add_argument("--table", type=at_least(1), choices=(1, 2), default=1, help="table of the paper")
    parser.add_argument("--figure", type=at_least(1), choices=(4,), help="figure of the paper, in numbers")
    parser.add_argument("--num-classes", type=at_least(1), default=1000)
    parser.add_argument("--size", type=at_least(1), help="side of the image: 224, or 32 for CIFAR networks")
    args = parser.parse_args(argv)
    from ..paper.analysis import figure_4, table_1, table_2

    if args.figure:
        print(figure_4())
    elif args.table == 2:
        print(table_2())
    elif args.name is None:
        raise UserError("analyze_model: name a network, such as resnext50_32x4d, or give --table 2 or --figure 4")
    else:
        print(table_1(args.name, args.num_classes, args.size))
