"""OpenVINO and NNCF as every part of the package uses them; needs no torch."""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np


def load(package: str) -> ModuleType:
    """Import ``openvino`` or ``nncf`` without the statistics that both report home: our users were not asked."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # both do without it
    return importlib.import_module(package)


class StackT(ctypes.Structure):
    """C's ``stack_t``."""

    _fields_ = [("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t)]


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """This thread's alternative signal stack is the same after the block.

    OpenVINO's CPU plugin sets one of its own, and when several of its objects go in another order than they came,
    it leaves one that is no longer mapped: the next signal, such as the one that asks a training to stop, would then
    end the process with a segmentation fault.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    before = StackT()
    if libc is not None:
        libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if libc is not None:
            libc.sigaltstack(ctypes.byref(before), None)


def quantized(model: Any, examples: Sequence[Sequence[np.ndarray]], **more: Any) -> Any:
    """8 bits for the convolutions and what flows between them; the ranges are those of the examples.

    Args:
        model: OpenVINO's.
        examples: its inputs.
        more: arguments of ``nncf.quantize``.
    """
    load("openvino")
    nncf = load("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # not what NNCF thinks of every node
    # MINMAX: nothing is clipped. NNCF's default, means over the examples, cost a small detector a whole point of AP.
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    return nncf.quantize(
        model,
        nncf.Dataset(examples, list),
        preset=nncf.QuantizationPreset.MIXED,  # the output of a ReLU has no sign, that of a sum has
        subset_size=len(examples),
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
        **more,
    )


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The processor's features by Linux's names; empty elsewhere."""
    return frozenset(cpu_facts("flags", "Features").split())


def processor() -> str:
    """The processor's name and features."""
    return " ".join([cpu_facts("model name") or platform.machine(), *sorted(cpu_flags())])


def cpu_facts(*keys: str) -> str:
    """The first line of Linux's /proc/cpuinfo that starts with one of ``keys``, without it; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(keys)), "")
    except OSError:
        return ""
