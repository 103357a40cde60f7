#!/usr/bin/env python
"""Write an RPN's proposals for Fast R-CNN: tools/dump_proposals.py --config-file FILE [KEY VALUE ...]"""

from resnext_det.detection.dump_proposals import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
