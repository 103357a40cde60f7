#!/usr/bin/env python
"""Write the quickstart's data: tools/make_digits.py [--output FOLDER]"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("make-digits")
