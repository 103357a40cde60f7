#!/usr/bin/env python
"""Split a labeled set: tools/split.py IN OUT --val 0.2 --test 0.1 | --folds 5"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("split")
