#!/usr/bin/env python
"""Write COCO's minival: tools/make_minival.py [--annotations FOLDER]"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("make-minival")
