#!/usr/bin/env python
"""Write an RPN's proposals for Fast R-CNN: tools/dump_proposals.py --config-file FILE [KEY VALUE ...]"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("proposals")
