#!/usr/bin/env python
"""Measure this package against its peers: tools/benchmark.py c4-inference --json out.json"""

from resnext_det.benchmarks.command import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
