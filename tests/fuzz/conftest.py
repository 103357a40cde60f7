"""Fuzzing watches memory."""

import resource

import pytest

MEMORY = 1 << 20
"""KiB that the process may grow by over all inputs of one test."""


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEMORY, f"{grown} KiB more memory"
