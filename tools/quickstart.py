"""Pretrain, fine-tune, evaluate and draw on handwritten digits: python tools/quickstart.py"""

import sys

from resnext_det.engine.cli import run
from resnext_det.quickstart import main

if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
