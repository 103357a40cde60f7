"""Parts of a network that OpenVINO computes, in int8 where they have seen examples of what they will be given.

OpenVINO and NNCF, which quantises for it, are optional: ``pip install 'resnext-det[openvino]'``.
"""

from __future__ import annotations

import copy
import ctypes
import importlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import UserError
from .precision import multiplies_bf16

logger = logging.getLogger(__name__)

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}


def load(package: str) -> ModuleType:
    """Import ``openvino`` or ``nncf`` without the statistics that both report home: our users were not asked."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # both do without it
    return importlib.import_module(package)


class Part:
    """A module of tensors that OpenVINO will compute.

    Until :meth:`compile` it runs in PyTorch and keeps some of what it is given, as examples for the quantization.

    Args:
        module: tensors -> a tensor or a tuple of them. Traced, so it may not branch on what they hold.
        example: inputs of typical shapes.
        dynamic: which of their dimensions vary. Without any, every call has the example's shapes, which is faster by a
            quarter where memory is channels-last; a smaller batch is filled up with zeros.
        every: keep the inputs of every so-manieth call only.
        rows: and of those every so-manieth row of the batch only.
    """

    def __init__(
        self,
        module: nn.Module,
        example: Sequence[Tensor],
        *,
        dynamic: Sequence[int] = (),
        every: int = 1,
        rows: int = 1,
    ) -> None:
        self.module: nn.Module | None = module
        self.example, self.dynamic = tuple(example), tuple(dynamic)
        self.every, self.rows = every, rows
        self.calls, self.seen = 0, []  # type: int, list[tuple[Tensor, ...]]
        self._run = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._run is not None:
            number = len(inputs[0])
            if not self.dynamic:
                inputs = tuple(self._filled_up(x, len(e)) for x, e in zip(inputs, self.example, strict=True))
            outputs = self._run([x.contiguous().numpy() for x in inputs])
            return tuple(torch.from_numpy(outputs[i])[:number] for i in range(len(outputs)))
        if self.calls % self.every == 0:
            self.seen.append(tuple(x[:: self.rows].clone(memory_format=torch.contiguous_format) for x in inputs))
        self.calls += 1
        outputs = self.module(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    def __deepcopy__(self, memo: dict) -> Part:
        return copy.copy(self)  # what OpenVINO has compiled cannot be copied, and nothing changes it

    @staticmethod
    def _filled_up(x: Tensor, number: int) -> Tensor:
        return x if len(x) == number else torch.cat([x, x.new_zeros(number - len(x), *x.shape[1:])])

    @torch.no_grad()
    def compile(self, dtype: str) -> None:
        """Hand the module over to OpenVINO.

        Args:
            dtype: fp32, bf16, or int8; a part that has seen no inputs is not quantized.
        """
        openvino = load("openvino")
        shapes = [[-1 if i in self.dynamic else n for i, n in enumerate(x.shape)] for x in self.example]
        model = openvino.convert_model(self.module, example_input=self.example, input=shapes)
        if dtype == "int8" and self.seen:
            # Examples are fewer at a time than calls of a fixed shape: NNCF sees them in a model of any batch.
            fixed = [x.shape for x in self.example]
            model.reshape({port: [-1, *port.partial_shape[1:]] for port in model.inputs})
            model = _quantised(model, self.seen)
            if not self.dynamic:
                model.reshape(dict(zip(model.inputs, fixed, strict=True)))
        rest = dtype if dtype in PRECISION_HINTS else "bf16" if multiplies_bf16("cpu") else "fp32"
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[rest],
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._run = openvino.Core().compile_model(model, "CPU", settings)
        self.module, self.seen = None, []


def _quantised(model, examples: Sequence[tuple[Tensor, ...]]):
    """8 bits for the convolutions and what flows between them; the ranges are those of the examples."""
    nncf = load("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # not what NNCF thinks of every node
    # MINMAX: nothing is clipped. NNCF's default, means over the examples, cost a small detector a whole point of AP.
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    return nncf.quantize(
        model,
        nncf.Dataset(examples, lambda inputs: [x.numpy() for x in inputs]),
        preset=nncf.QuantizationPreset.MIXED,  # what comes out of a ReLU has no sign, what comes out of a sum has
        subset_size=len(examples),
        advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
    )


class StackT(ctypes.Structure):
    """C's ``stack_t``."""

    _fields_ = [("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t)]


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
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


@torch.no_grad()
@_signal_stack_kept()
def compile_parts(parts: Sequence[Part], dtype: str, model: nn.Module, calibration: Iterable | None) -> None:
    """Compile every part; for int8 after ``model`` has run on the batches of ``calibration`` to show them examples.

    Raises:
        UserError: int8 without examples.
    """
    if dtype == "int8" and parts:
        start, batches = time.perf_counter(), 0
        for batch in calibration or ():
            model(batch)
            batches += 1
        if not any(part.seen for part in parts):
            raise UserError("dtype int8: give calibration images, a few dozen of those that the network is for")
        if unseen := sum(not part.seen for part in parts):
            logger.warning(
                "int8: %d of %d parts had nothing to compute on the calibration images and are not quantized (the "
                "regions' part of res5 where few regions on a large map make the plain order cheaper).",
                *(unseen, len(parts)),
            )
        logger.info("int8: measured ranges on %d batches in %.0f s.", batches, time.perf_counter() - start)
    start = time.perf_counter()
    for part in parts:
        part.compile(dtype)
    if parts:
        logger.info("OpenVINO compiled %d parts in %s in %.0f s.", len(parts), dtype, time.perf_counter() - start)
