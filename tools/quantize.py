#!/usr/bin/env python
"""Write a C4 detector in 8 bits: tools/quantize.py --weights FILE --calibration photos/"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("quantize")
