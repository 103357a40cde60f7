"""``resnext-det COMMAND ...``: every tool of the package under one name, for those without the clone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from .engine.cli import run
from .errors import UserError, nearest

COMMANDS = {
    "train": ("resnext_det.detection.train", "train and evaluate a detector"),
    "pretrain": ("resnext_det.classification.command", "train and evaluate a classifier"),
    "predict": ("resnext_det.detection.predict", "detect in pictures and videos"),
    "evaluate": ("resnext_det.reporting.command", "COCO metrics of a result file"),
    "check": ("resnext_det.detection.dataset_check.command", "check a data set in COCO's format"),
    "convert": ("resnext_det.weights.command", "convert weights from and to torchvision, timm and detectron2"),
    "export": ("resnext_det.detection.export_command", "write a C4 detector as ONNX and torch.export"),
    "proposals": ("resnext_det.detection.dump_proposals", "write a detector's proposals, to train or test on"),
    "reproduce": ("resnext_det.reproduce", "the paper's tables, its numbers beside ours"),
    "study": ("resnext_det.study", "benchmarks and tables in a row, in stretches of machine time"),
    "make-imagenet-val": ("resnext_det.classification.makers.imagenet_val", "sort ImageNet's validation pictures"),
    "make-imagenet5k": ("resnext_det.classification.makers.imagenet5k", "choose ImageNet-5K's classes"),
    "make-cifar": ("resnext_det.classification.makers.cifar", "CIFAR's archives as folders of pictures"),
    "make-shards": ("resnext_det.classification.makers.shards", "a folder of classes as WebDataset shards"),
    "analyze": ("resnext_det.analysis", "shapes, parameters and multiply-adds of a network"),
    "benchmark": ("resnext_det.benchmarks.command", "measure this package against its peers"),
    "curves": ("resnext_det.reporting.curves", "draw the training curves of runs"),
    "doctor": ("resnext_det.doctor", "what is installed here, and what would mend it"),
}
"""{command: (module whose ``main(argv)`` it is, what it does)}. A module is imported when its command is called."""


def usage() -> str:
    """The commands, one on a line."""
    lines = [f"  {name:18s} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: resnext-det COMMAND ...", "", *lines, "", "resnext-det COMMAND --help tells its flags."])


def call(argv: Sequence[str]) -> None:
    """Run ``COMMAND ...``.

    Raises:
        UserError: no such command, and whatever the command raises.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = argv
    if name not in COMMANDS:
        raise UserError(f"resnext-det {name}: no such command{nearest(name, COMMANDS)}; resnext-det --help lists them")
    sys.argv[0] = f"resnext-det {name}"  # what argparse calls the program
    try:
        module = import_module(COMMANDS[name][0])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("resnext_det"):
            raise
        raise UserError(
            f"resnext-det {name} needs {error.name}, which is not installed: resnext-det doctor tells what installs it"
        ) from error
    module.main(rest)


def main() -> None:
    """Entry point of the console command."""
    run(lambda: call(sys.argv[1:]))


if __name__ == "__main__":
    main()
