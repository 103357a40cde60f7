"""Pretrain, fine-tune, evaluate and draw on handwritten digits: tools/quickstart.py"""

from resnext_det.engine.cli import run
from resnext_det.quickstart import main

if __name__ == "__main__":
    run(main)
