#!/usr/bin/env python
"""Export a C4 detector as ONNX and torch.export: tools/export.py --config-file FILE MODEL.WEIGHTS FILE"""

from resnext_det.detection.export_command import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
