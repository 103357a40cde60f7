#!/usr/bin/env python
"""Measure this package against its peers: tools/benchmark.py c4-inference --json out.json"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("benchmark")
