#!/usr/bin/env python
"""Unpack CIFAR: tools/make_cifar.py cifar-10-python.tar.gz datasets/cifar10"""

from resnext_det.cli import main

if __name__ == "__main__":
    main("make-cifar")
