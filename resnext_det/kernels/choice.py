"""Which of several ways to compute the same thing is the fastest here: measured once, remembered, logged in a line."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Way = Callable[[], Tensor]

WARM_UPS, TURNS = 2, 7

_chosen: dict[Hashable, str] = {}


def fastest(what: str, key: Hashable, ways: Mapping[str, Way], device: torch.device) -> Way:
    """The fastest of ``ways`` for ``key``, measured at the first call; a single way is not measured.

    A way that fails while it is measured (this GPU has no room for the kernel) is left out with a warning.

    Args:
        what: for the log.
        key: what decides the speed: shapes, types, device.
        ways: {name: function without arguments}; all give the same result and change nothing.

    Raises:
        RuntimeError: all have failed; of memory, torch's own error.
    """
    if len(ways) == 1:
        return next(iter(ways.values()))
    if _chosen.get(key) not in ways:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():  # nothing can be measured in a graph
            return next(iter(ways.values()))
        seconds = measure(ways, device)
        name = _chosen[key] = min(seconds, key=seconds.__getitem__)
        logger.info("%s: %s; %s", what, name, describe(seconds))
    return ways[_chosen[key]]


def measure(ways: Mapping[str, Way], device: torch.device) -> dict[str, float]:
    """Median seconds of each way, run turn by turn after warming up.

    Raises:
        RuntimeError: all have failed; of memory, torch's own error.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(WARM_UPS + TURNS):
        for name in list(seconds):
            try:
                passed = once(ways[name], device)
            except Exception as error:
                logger.warning("%s: left out, it fails: %s", name, " ".join(f"{error}".split())[:300])
                del seconds[name]
                if not seconds:
                    if isinstance(error, torch.cuda.OutOfMemoryError):  # callers know it, and take less
                        raise
                    raise RuntimeError("every way to compute it has failed, see the log") from error
                continue
            if turn >= WARM_UPS:
                seconds[name].append(passed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def once(way: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run: between two events on a GPU, by the wall clock elsewhere."""
    if device.type != "cuda":
        begin = time.perf_counter()
        way()
        return time.perf_counter() - begin
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def describe(seconds: Mapping[str, float]) -> str:
    """``triton 16x128 0.052 ms, torch channels-last 0.210 ms, ...``, the fastest first; of one kind only its best."""
    kinds: dict[str, str] = {}
    for name in sorted(seconds, key=seconds.__getitem__):
        kind = "triton" if name.startswith("triton") else name
        kinds.setdefault(kind, f"{name} {seconds[name] * 1000:.3f} ms")
    return ", ".join(kinds.values())


def forget() -> None:
    """Measure again from now on."""
    _chosen.clear()
