#!/usr/bin/env python
"""Leave out regions that need no look: tools/regions.py --weights FILE --input photos/"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("regions")
