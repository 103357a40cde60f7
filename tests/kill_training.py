"""The kill test: a small detector's training, killed with SIGKILL again and again, must end with the very same weights.

    python tests/kill_training.py --kills 50 --mid-checkpoint 10

Each run trains the same 24 iterations. It is killed at random moments, and in the middle of writing checkpoints, and
resumed each time with ``--resume``'s code; then its final weights are compared bit for bit with those of a run that
nothing disturbed. Processes are forked from one that has imported everything, so a kill costs a second and not ten.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import resnext_det  # noqa: F401  (before detectron2, which it may have to fix)

# isort: split
from resnext_det.detection.config import setup
from resnext_det.detection.train import run as train
from resnext_det.engine import checkpoint
from resnext_det.engine.run import RunOptions
from resnext_det.engine.trainer import Trainer
from resnext_det.makers.synthetic import detection_config

ITERATIONS = 24
KILLS_PER_RUN = 8


def start(cfg, log: Path, torn_after: int | None = None) -> tuple[int, int]:
    """Fork a process that trains with ``--resume``; returns its id and a pipe that gets a byte after each step.

    Args:
        torn_after: bytes after which the first checkpoint that it writes is cut off by SIGKILL.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    code = 1
    try:
        os.close(read)
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        step = Trainer.run_step

        def reported(self) -> None:
            step(self)
            os.write(write, b".")

        Trainer.run_step = reported
        if torn_after is not None:
            _die_while_writing(torn_after)
        train(cfg, RunOptions(resume=True))
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def _die_while_writing(after: int) -> None:
    save = torch.save

    def torn(data, file) -> None:
        save(data, file)
        file.flush()
        file.truncate(min(after, file.tell()))
        os.fsync(file.fileno())
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.torch.save = torn


def wait(pid: int, pipe: int) -> int:
    """Exit code, negative for a signal."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pipe)
    return code


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def kill_test(folder: Path, kills: int, mid_checkpoint: int, seed: int = 0) -> dict[str, int]:
    """Counts of kills by kind and of runs; raises AssertionError when one run differs or is lost."""
    rng = np.random.default_rng(seed)
    config = detection_config(folder, ITERATIONS)
    begun = time.perf_counter()

    def cfg_of(name: str):
        return setup(
            str(config), ["OUTPUT_DIR", str(folder / name), "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.REPORT", "False"]
        )

    log = folder / "log"
    assert wait(*start(cfg_of("whole"), log)) == 0, log.read_text()[-2000:]
    whole = final_weights(folder / "whole")
    plan = ["anywhere"] * kills + ["mid-checkpoint"] * mid_checkpoint
    rng.shuffle(plan)
    counts = {"anywhere": 0, "mid-checkpoint": 0, "runs": 0, "resumed from the one before": 0}
    while plan:
        name = f"run_{counts['runs']}"
        for _ in range(KILLS_PER_RUN):
            if not plan:
                break
            kind = plan[-1]
            torn_after = int(rng.integers(0, 60_000)) if kind == "mid-checkpoint" else None
            pid, pipe = start(cfg_of(name), log, torn_after)
            if kind == "anywhere":
                steps, last = int(rng.integers(0, 7)), time.perf_counter()
                before = last - 1.0  # until a step has been seen, one may take a second
                for _ in range(steps):
                    if not os.read(pipe, 1):
                        break
                    last, before = time.perf_counter(), last
                pause = min(1.0, last - before)
                time.sleep(rng.uniform(0, pause))
                os.kill(pid, signal.SIGKILL)
            code = wait(pid, pipe)
            if code == 0:  # it was faster than the kill
                break
            assert code == -signal.SIGKILL, log.read_text()[-2000:]
            counts[plan.pop()] += 1
        assert wait(*start(cfg_of(name), log)) == 0, log.read_text()[-2000:]
        ours = final_weights(folder / name)
        assert ours.keys() == whole.keys() and all(torch.equal(ours[key], whole[key]) for key in whole), name
        counts["runs"] += 1
        print(f"{time.perf_counter() - begun:.0f} s: {counts}", flush=True)
    text = log.read_text()
    counts["resumed from the one before"] = text.count("trying the one before")
    counts["resumed"] = text.count("resumed from ")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="at random moments")
    parser.add_argument("--mid-checkpoint", type=int, default=10, help="in the middle of writing a checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # forked processes must not inherit a pool of threads
    with tempfile.TemporaryDirectory() as folder:
        print(kill_test(Path(folder), args.kills, args.mid_checkpoint, args.seed))


if __name__ == "__main__":
    main()
