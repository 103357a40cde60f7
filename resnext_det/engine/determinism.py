"""Equal bits on the same machine: the switch DETERMINISTIC of both trainings, together with SEED.

Data order, augmentation and sampling depend on the seed alone in any case (:mod:`.sampler`, :class:`.trainer.Trainer`),
with any number of data workers. The order of additions inside torch's kernels is left, and this fixes it.
"""

from __future__ import annotations

import os

import torch

from ..errors import UserError


def make_deterministic(switch: bool, seed: int) -> None:
    """With ``switch``, let torch use only algorithms whose results do not vary; without, change nothing.

    Call it before anything runs on a GPU.

    Raises:
        UserError: a negative, that is random, seed.
    """
    if not switch:
        return
    if seed < 0:
        raise UserError(f"DETERMINISTIC True needs a seed, and SEED is {seed}: set SEED to a number from 0")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid that costs time
    torch.backends.cudnn.benchmark = False
