#!/usr/bin/env python
"""Benchmarks and tables in a row, in stretches: tools/study.py configs/reproduce/one_gpu.yaml --minutes 9 ..."""

from resnext_det.cli import main

if __name__ == "__main__":
    main("study")
