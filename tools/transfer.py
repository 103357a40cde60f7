#!/usr/bin/env python
"""Pretrained backbones compared: tools/transfer.py --protocol voc0712 --weights a.pth b.pth --trials 5"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("transfer")
