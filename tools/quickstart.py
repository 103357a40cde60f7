#!/usr/bin/env python
"""Pretrain, fine-tune, evaluate and draw on handwritten digits: tools/quickstart.py"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("quickstart")
