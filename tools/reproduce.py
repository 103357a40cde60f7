#!/usr/bin/env python
"""A table of the paper, run and printed beside the published numbers: tools/reproduce.py --table 8 --run"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("reproduce")
