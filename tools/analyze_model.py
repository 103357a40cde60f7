#!/usr/bin/env python
"""Print the paper's Table 1 for a network of the family, or Table 2: tools/analyze_model.py resnext50_32x4d"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("analyze")
