"""``python -m resnext_det --self-test``: does everything work here, from images to numbers? About a minute.

On drawn shapes: a classifier is pretrained, a C4 detector is trained from its weights, interrupted, resumed and
evaluated. The resumed detector must have the very weights of one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..commands.pretrain import main as pretrain
from ..detection.config import setup
from ..detection.train import run as run_detector
from ..engine.checkpoint import read_run_checkpoint
from ..engine.run import RunOptions
from ..errors import RunFailed
from ..files import atomic_write
from ..makers.synthetic import classification_config, detection_config

ITERATIONS, INTERRUPTED = 120, 40
LEARNED = 10.0
"""AP50 in percent on the images of the training: without learning it is below 1."""


def self_test() -> None:
    """Run it and print a line for each step.

    Raises:
        RunFailed: something works otherwise than it must; what came before it is printed.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="resnext_det_") as temporary:
        folder = Path(temporary)
        with _step("pretrain a classifier of two shapes, and evaluate it"):
            pretrain(["--config-file", str(classification_config(folder / "classes", epochs=3))])
            classifier = folder / "classes" / "run" / "model_final.pth"
        config = str(detection_config(folder / "shapes", ITERATIONS))
        common = ["MODEL.WEIGHTS", str(classifier), "TEST.REPORT", "False"]
        common += ["SOLVER.CHECKPOINT_PERIOD", str(INTERRUPTED)]
        with _step(f"train a detector for {ITERATIONS} iterations and evaluate it"):
            cfg = setup(config, common)
            found = run_detector(cfg)["bbox"]["AP50"]
            if not found > LEARNED:
                raise RunFailed(f"self-test: AP50 {found:.1f} after training; above {LEARNED:g} is normal")
        with _step(f"take it back to iteration {INTERRUPTED}, resume, and compare all weights"):
            output = Path(cfg.OUTPUT_DIR)
            whole = read_run_checkpoint(output / "model_final.pth")["model"]
            for path in output.glob("model_*.pth"):
                if path.name != f"model_{INTERRUPTED - 1:07d}.pth":
                    path.unlink()
            with atomic_write(output / "last_checkpoint") as file:
                file.write(f"model_{INTERRUPTED - 1:07d}.pth")
            run_detector(cfg, RunOptions(resume=True))
            resumed = read_run_checkpoint(output / "model_final.pth")["model"]
            other = [key for key in whole if not torch.equal(whole[key], resumed[key])]
            if other:
                raise RunFailed(f"self-test: {len(other)} weights differ after resuming, such as {other[0]}")
    print(f"self-test passed in {time.perf_counter() - begun:.0f} s", flush=True)


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    print(f"{name} ... ", end="", flush=True)
    begun = time.perf_counter()
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), _quiet_logs():
        yield
    print(f"ok, {time.perf_counter() - begun:.0f} s", flush=True)


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
