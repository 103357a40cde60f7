"""What every test shares: one thread, a fixed seed, and the way to real data that lies outside the repository."""

from __future__ import annotations

import os
import random
from pathlib import Path

# Before torch is imported, and inherited by the programs that tests start: several workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import resnext_det  # noqa: E402, F401 (before detectron2, which it may have to mend)

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same state of Python's, numpy's and torch's random numbers. Returns the seed."""
    value = 0
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    return value


def shared_data(name: str) -> Path:
    """The file or folder ``name`` of the real data sets that tests use where they are present; else the test skips.

    They are looked for in ``$RESNEXT_DET_TEST_DATA``, then in ``shared/data`` beside the repository.
    Import it as ``from conftest import shared_data``.
    """
    folder = Path(os.environ.get("RESNEXT_DET_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / name).exists():
        pytest.skip(f"no test data {name}: RESNEXT_DET_TEST_DATA may name the folder that holds it")
    return folder / name
