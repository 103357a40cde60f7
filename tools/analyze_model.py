"""Print the paper's Table 1 for a network of the family, or Table 2: python tools/analyze_model.py resnext50_32x4d"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from resnext_det import UserError
from resnext_det.analysis import table_1, table_2
from resnext_det.engine.cli import run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", help="such as resnext50_32x4d; resnext_det.list_models() lists more")
    parser.add_argument("--table", type=int, choices=(1, 2), default=1, help="table of the paper")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--size", type=int, help="side of the picture: 224, or 32 for CIFAR networks")
    args = parser.parse_args(argv)
    if args.table == 2:
        print(table_2())
    elif args.name is None:
        raise UserError("analyze_model: name a network, such as resnext50_32x4d, or give --table 2")
    else:
        print(table_1(args.name, args.num_classes, args.size))


if __name__ == "__main__":
    run(main)
