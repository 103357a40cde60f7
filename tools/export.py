#!/usr/bin/env python
"""Export a C4 detector as ONNX and torch.export: tools/export.py --config-file FILE MODEL.WEIGHTS FILE"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("export")
