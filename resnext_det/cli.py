"""``resnext-det COMMAND ...``: every tool of the package under one name, for those without the clone."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module

from .engine.exits import run
from .errors import UserError, nearest
from .files import expanded

COMMANDS = {
    "train": "train and evaluate a detector",
    "pretrain": "train and evaluate a classifier",
    "auto": "a folder of labels in, a trained and evaluated detector out",
    "predict": "detect in images and videos",
    "evaluate": "COCO metrics of a result file",
    "check": "check a data set in COCO's format",
    "show": "a grid of what training sees",
    "convert": "convert weights from and to torchvision, timm and detectron2",
    "split": "training, validation and test sets of one labeled set",
    "convert-data": "labels of COCO, YOLO, VOC, CVAT and LabelMe as COCO, YOLO or VOC",
    "export": "write a C4 detector as ONNX and torch.export",
    "quantize": "write a C4 detector in 8 bits for OpenVINO",
    "regions": "leave out regions that need no look, at a stated risk",
    "tune": "measure ways to run a detector here, and write the fastest that is good enough",
    "proposals": "write a detector's proposals, to train or test on",
    "reproduce": "the paper's tables, its numbers beside ours",
    "transfer": "pretrained backbones on VOC07+12 and COCO with a C4 detector",
    "study": "benchmarks and tables in a row, in stretches of machine time",
    "quickstart": "handwritten digits: pretrain, fine-tune, evaluate, draw",
    "make-digits": "the quickstart's data: digits alone and in scenes",
    "make-minival": "COCO's minival and valminusminival from val2014",
    "make-imagenet-val": "sort ImageNet's validation images",
    "make-imagenet5k": "choose ImageNet-5K's classes",
    "make-cifar": "CIFAR's archives as folders of images",
    "make-shards": "a folder of classes, or labels of detection, as WebDataset shards",
    "analyze": "shapes, parameters and multiply-adds of a network",
    "benchmark": "measure this package against its peers",
    "curves": "draw the training curves of runs",
    "doctor": "what is installed here, and what would fix it",
}
"""{command: what it does}. ``commands/NAME.py`` holds its ``main(argv)`` and is imported when it is called."""


def usage() -> str:
    """The commands, one on a line."""
    lines = [f"  {name:18s} {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(["usage: resnext-det COMMAND ...", "", *lines, "", "resnext-det COMMAND --help shows its flags."])


def call(name: str, argv: Sequence[str]) -> None:
    """Run the command ``name``.

    Raises:
        UserError: no such command, and whatever the command raises.
    """
    if name not in COMMANDS:
        raise UserError(f"resnext-det {name}: no such command{nearest(name, COMMANDS)}; resnext-det --help lists them")
    # A shell expands ~ only at the beginning of a word, not in --weights=~/x, and not what a program hands on.
    argv = [re.sub(r"^(--[\w-]+=)?~(?=/|$)", lambda found: (found[1] or "") + expanded("~"), word) for word in argv]
    try:
        import_module(f"resnext_det.commands.{name.replace('-', '_')}").main(argv)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("resnext_det"):
            raise
        raise UserError(
            f"resnext-det {name} needs {error.name}, which is not installed: resnext-det doctor says what installs it"
        ) from error


def main(command: str | None = None) -> None:
    """Entry point of the console command, and with ``command`` of the tool in ``tools/`` that runs it."""
    argv = sys.argv[1:]
    if command is None and (not argv or argv[0] in ("-h", "--help")):
        print(usage())
        return
    if command is None:
        command, *argv = argv
        sys.argv[0] = f"resnext-det {command}"  # what argparse calls the program
    run(lambda: call(command, argv))


if __name__ == "__main__":
    main()
