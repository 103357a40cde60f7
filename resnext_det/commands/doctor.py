"""``resnext-det doctor``: what is installed here, and what would fix it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..doctor.examination import examine, ready, report


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report and leave with its code: 0 when C4 training and evaluation can run, 2 otherwise.

    With ``--self-test`` they also do run, on synthetic data; what goes wrong there is raised.
    """
    parser = argparse.ArgumentParser(description="What is installed here, and what would fix it.")
    parser.add_argument("--self-test", action="store_true", help="also train, evaluate and resume on synthetic data")
    args = parser.parse_args(argv)
    findings = examine()
    print(report(findings))
    if args.self_test and ready(findings):
        importlib.import_module("resnext_det.doctor.self_test").self_test()
    sys.exit(0 if ready(findings) else 2)
