"""What every test shares: one thread, a fixed seed, and detectron2 fixed before it is imported."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator

# Before torch is imported, and inherited by the programs that tests start: several workers share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch.multiprocessing  # noqa: E402

import resnext_det  # noqa: E402, F401 (before detectron2, which it may have to fix)

torch.set_num_threads(1)
# The first gradient settles for which devices autograd starts threads. Behind torch.export there seems to be one more
# than the CPU, and a process forked after that can compute no gradients; before it there is none.
torch.ones(1, requires_grad=True).sum().backward()

FORK = {"start_method": "fork"}


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files that hold most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: one of them at the end would leave the other processes without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same state of Python's, numpy's and torch's random numbers. Returns the seed."""
    value = 0
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A run in the same process stops its loggers from passing records on; the next test's ``caplog`` hears them."""
    yield
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of a run are forked, which saves the seconds of their imports; users' are spawned."""
    start = torch.multiprocessing.start_processes
    monkeypatch.setattr(
        torch.multiprocessing, "start_processes", lambda *args, **options: start(*args, **options | FORK)
    )
