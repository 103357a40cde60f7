"""Parts of a network computed by OpenVINO; in int8 once they have seen examples of their input.

OpenVINO and NNCF, which quantises for it, are optional: ``pip install 'resnext-det[openvino]'``.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError
from .fused import refuse_weights
from .precision import multiplies_bf16
from .runtime import load, quantized, signal_stack_kept

logger = logging.getLogger(__name__)

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}


class Recorder(nn.Module):
    """A module of tensors that OpenVINO will compute: runs it and keeps some of its inputs, to quantize by.

    :func:`compile_parts` puts a :class:`Compiled` in its place.

    Args:
        module: tensors -> a tensor or a tuple of them. Traced, so it may not branch on what they hold.
        example: inputs of typical shapes.
        dynamic: which of their dimensions vary. Without any, every call has the example's shapes: faster by a quarter
            with channels-last memory; a smaller batch is filled up with zeros.
        every: keep the inputs of every n-th call only.
        rows: and of those every n-th row of the batch only.
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
        super().__init__()
        self.module = module
        self.example, self.dynamic = tuple(example), tuple(dynamic)
        self.every, self.rows = every, rows
        self.calls, self.seen = 0, []  # type: int, list[tuple[Tensor, ...]]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.calls % self.every == 0:
            self.seen.append(tuple(x[:: self.rows].clone(memory_format=torch.contiguous_format) for x in inputs))
        self.calls += 1
        outputs = self.module(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    @torch.no_grad()
    def compile_by_openvino(self, dtype: str) -> Compiled:
        """The module as OpenVINO computes it.

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
            model = quantized(model, [[x.numpy() for x in inputs] for inputs in self.seen])
            if not self.dynamic:
                model.reshape(dict(zip(model.inputs, fixed, strict=True)))
        rest = dtype if dtype in PRECISION_HINTS else "bf16" if multiplies_bf16("cpu") else "fp32"
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[rest],
            "PERFORMANCE_HINT": "LATENCY",
        }
        return Compiled(*_serialized(model), settings, rows=0 if self.dynamic else len(self.example[0]))


class Compiled(nn.Module):
    """What a :class:`Recorder` becomes: tensors -> a tuple of tensors, float32, by OpenVINO.

    Every thread and every copy has an inference request of its own, so no call can receive another's results. The
    model lies in two buffers of bytes: state dict, pickle and deep copy hold all of it, and compile it where they wake.

    Args:
        graph, weights: OpenVINO's serialized model, bytes as uint8.
        settings: of the CPU plugin.
        rows: the batch that the model was compiled for, smaller ones are filled up; 0 for any.
    """

    def __init__(self, graph: Tensor, weights: Tensor, settings: dict[str, object], rows: int) -> None:
        super().__init__()
        self.register_buffer("graph", graph)
        self.register_buffer("weights", weights)
        self.settings, self.rows = settings, rows
        self._compile()

    @signal_stack_kept()
    def _compile(self) -> None:
        core = load("openvino").Core()
        model = core.read_model(*(x.cpu().numpy().tobytes() for x in (self.graph, self.weights)))
        self._compiled = core.compile_model(model, "CPU", self.settings)
        self._threads = threading.local()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        request = getattr(self._threads, "request", None)
        if request is None:
            with signal_stack_kept():
                request = self._threads.request = self._compiled.create_infer_request()
        number = len(inputs[0])
        arrays = [self._filled_up(x.detach().float()).contiguous().numpy() for x in inputs]
        outputs = request.infer(arrays, share_inputs=True)
        return tuple(torch.from_numpy(outputs[i])[:number] for i in range(len(outputs)))

    def _filled_up(self, x: Tensor) -> Tensor:
        missing = self.rows - len(x)
        return x if missing <= 0 else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])

    _load_from_state_dict = refuse_weights

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_compiled", "_threads")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._compile()

    def __deepcopy__(self, memo: dict) -> Compiled:
        twin = Compiled.__new__(Compiled)  # what OpenVINO has compiled serves all, and nothing changes it
        twin.__dict__ = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in self.__dict__.items()}
        twin._threads = threading.local()
        return twin


def _serialized(model) -> tuple[Tensor, Tensor]:
    """The two files of an OpenVINO model as uint8 tensors."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("model.xml", "model.bin")]
        load("openvino").serialize(model, *map(str, files))
        return tuple(torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files)


@torch.no_grad()
@signal_stack_kept()
def compile_parts(model: nn.Module, dtype: str, calibration: Iterable | None) -> None:
    """Compile every :class:`Recorder` in ``model``; for int8 after it has run on ``calibration`` to show them examples.

    Raises:
        UserError: int8 without examples.
    """
    parts = {name: m for name, m in model.named_modules() if isinstance(m, Recorder)}
    if not parts:
        return
    if dtype == "int8":
        start, batches = time.perf_counter(), 0
        for batch in calibration or ():
            model(batch)
            batches += 1
        if not any(part.seen for part in parts.values()):
            raise UserError("dtype int8: give calibration images, a few dozen of those that the network is for")
        if unseen := sum(not part.seen for part in parts.values()):
            logger.warning(
                "int8: %d of %d parts had nothing to compute on the calibration images and are not quantized (the "
                "regions' part of res5 where few regions on a large map make the plain order cheaper).",
                *(unseen, len(parts)),
            )
        logger.info("int8: measured ranges on %d batches in %.0f s.", batches, time.perf_counter() - start)
    start = time.perf_counter()
    for name, part in parts.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, part.compile_by_openvino(dtype))
    logger.info("OpenVINO compiled %d parts in %s in %.0f s.", len(parts), dtype, time.perf_counter() - start)
