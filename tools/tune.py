#!/usr/bin/env python
"""Time against AP on this machine: tools/tune.py --weights FILE --calibration photos/"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("tune")
