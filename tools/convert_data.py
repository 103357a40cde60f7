#!/usr/bin/env python
"""Labels of one format as another: tools/convert_data.py IN OUT --to coco|yolo|voc"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("convert-data")
