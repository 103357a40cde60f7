"""``python -m resnext_det --self-test``: does everything work here, from images to numbers? About a minute.

On drawn shapes: a classifier is pretrained, a C4 detector is trained from its weights, interrupted, resumed and
evaluated. The resumed detector must have the very weights of one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..engine.checkpoint import read_run_checkpoint
from ..engine.signals import command_line, end_command, start_command
from ..errors import RunFailed
from ..files import RESULTS_FILE, atomic_write
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
            _call("pretrain", "--config-file", classification_config(folder / "classes", epochs=3))
        config, output = detection_config(folder / "shapes", ITERATIONS), folder / "shapes" / "run"
        weights = ("MODEL.WEIGHTS", folder / "classes" / "run" / "model_final.pth", "TEST.REPORT", False)
        settings = (*weights, "SOLVER.CHECKPOINT_PERIOD", INTERRUPTED)
        with _step(f"train a detector for {ITERATIONS} iterations and evaluate it"):
            _call("train", "--config-file", config, *settings)
            found = json.loads((output / RESULTS_FILE).read_text(encoding="utf-8"))["bbox"]["AP50"]
            if not found > LEARNED:
                raise RunFailed(f"self-test: AP50 {found:.1f} after training; above {LEARNED:g} is normal")
        with _step(f"take it back to iteration {INTERRUPTED}, resume, and compare all weights"):
            whole = read_run_checkpoint(output / "model_final.pth")["model"]
            for path in output.glob("model_*.pth"):
                if path.name != f"model_{INTERRUPTED - 1:07d}.pth":
                    path.unlink()
            with atomic_write(output / "last_checkpoint") as file:
                file.write(f"model_{INTERRUPTED - 1:07d}.pth")
            _call("train", "--config-file", config, "--resume", *settings)
            resumed = read_run_checkpoint(output / "model_final.pth")["model"]
            other = [key for key in whole if not torch.equal(whole[key], resumed[key])]
            if other:
                raise RunFailed(f"self-test: {len(other)} weights differ after resuming, such as {other[0]}")
    print(f"self-test passed in {time.perf_counter() - begun:.0f} s", flush=True)


def _call(*words: object) -> None:
    """A command of this package, as a user calls it."""
    command = command_line(*map(str, words))
    child = start_command(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = child.communicate()
    finally:
        end_command(child)
    if child.returncode:
        last = errors.strip().splitlines()[-1:]
        raise RunFailed(f"self-test: resnext-det {words[0]} ended with code {child.returncode}: {' '.join(last)}")


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    print(f"{name} ... ", end="", flush=True)
    begun = time.perf_counter()
    yield
    print(f"ok, {time.perf_counter() - begun:.0f} s", flush=True)
