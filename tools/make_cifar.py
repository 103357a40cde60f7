#!/usr/bin/env python
"""Unpack CIFAR: tools/make_cifar.py cifar-10-python.tar.gz datasets/cifar10"""

from resnext_det.classification.makers.cifar import main
from resnext_det.engine.cli import run

if __name__ == "__main__":
    run(main)
