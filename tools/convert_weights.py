#!/usr/bin/env python
"""Convert a file of weights: tools/convert_weights.py IN OUT [--to native|torchvision|timm]"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("convert")
