"""What fuzz tests share: the number of inputs, a limit on the CPU time of each, and damage to bytes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("RESNEXT_DET_FUZZ_EXAMPLES", 100))
"""Inputs for each fuzz test."""

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def no_hang(seconds: float = 20.0) -> Iterator[None]:
    """Fail when the block takes that much CPU time, which a busy machine does not change."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError(f"no end after {seconds} seconds of CPU time")

    before = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with bytes changed, cut out, inserted or repeated, or its end missing."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "repeat", "end"]))
        if kind == "change":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 256))]
        else:
            del data[place:]
    return bytes(data)
