#!/usr/bin/env python
"""Train a classifier of the family, or evaluate one: tools/pretrain.py --config-file FILE [KEY VALUE ...]"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("pretrain")
