"""Speed, agreement and memory against the peers: stock detectron2, torchvision, torchvision's RoIAlign.

Both sides have the same weights and the same input and run in one process, turn by turn, after one turn to warm up;
figures are medians. Times are device events on CUDA; on CPUs wall clock, or processor time where a machine is shared
with others and the wall clock tells of them. Weights are random.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..inference.runtime import cpu_facts, cpu_flags
from ..kernels.choice import once

Result = dict[str, dict]
Row = dict[str, "float | str"]


def keep_nothing(rows: dict[str, Row]) -> None:
    """For :attr:`Setting.keep`: a function that travels to another process."""


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        device: cpu or cuda.
        quick: a small problem: it shows that everything runs and measures nothing.
        clock: of CPUs: "wall", or "cpu" for the processor time of all threads of this process.
        turns: measured turns; 0 takes each benchmark's own number.
        regions: of each image in training, where 512 would take too long.
        batch: images at once in ``c4-inference``, ``networks`` and ``grouped-conv``; 0 takes each benchmark's own.
        norm: MODEL.RESNETS.NORM of ``c4-train`` and ``c4-memory``.
        extra_norm: one more norm behind res5 in them, as in the transfer benchmarks.
        images: sizes of the sets of ``scale``, rising; none takes its own.
        folder: where ``scale`` makes them; None takes the system's for temporary files.
        ends: of measuring, in seconds of :func:`time.monotonic`; rows that would begin later are left to another call.
        known: rows that an earlier call has measured here.
        keep: called with all rows after each of them.
    """

    device: str = "cpu"
    quick: bool = False
    clock: str = "wall"
    turns: int = 0
    regions: int = 512
    batch: int = 0
    ends: float = math.inf
    known: Mapping[str, Row] = field(default_factory=dict)
    keep: Callable[[dict[str, Row]], None] = keep_nothing
    norm: str = "FrozenBN"
    extra_norm: bool = False
    images: tuple[int, ...] = ()
    folder: str | None = None

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.clock == "cpu" else time.perf_counter()

    @property
    def bf16(self) -> bool:
        """Whether bf16 is worth its time here; emulated, it takes minutes and tells nothing."""
        from ..inference.precision import multiplies_bf16

        return self.quick or multiplies_bf16(self.device)


def machine(threads: int, device: str) -> dict[str, str | int | float]:
    """Set the number of threads and describe hardware and versions."""
    import torchvision

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; use --device cpu")
    if threads:
        torch.set_num_threads(threads)
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    name = cpu_facts("model name") or platform.processor() or platform.machine()
    return {
        "processor": " ".join([name, *(flag for flag in known if flag in cpu_flags())]),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none",
        "threads": torch.get_num_threads(),
        "load average before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def timed(functions: dict[str, Callable[[], object]], setting: Setting, turns: int) -> dict[str, float]:
    """Median seconds of each function over ``turns``, run turn by turn after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range((1 if setting.quick else setting.turns or turns) + 1):
        for name, function in functions.items():
            if setting.device == "cuda":
                passed = once(function, torch.device("cuda"))
            else:
                begin = setting.now()
                function()
                passed = setting.now() - begin
            if turn:
                seconds[name].append(passed)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Rows:
    """A long table, kept row by row: an interrupted run loses nothing, and the next one continues.

    Attributes:
        rows: {label: {column: number}}, or {label: {"not run": reason}}, {label: {"failed": error}}.
        left: how many rows the time did not suffice for.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.rows, self.left = setting, dict(setting.known), 0

    def add(self, label: str, measure: Callable[[], Row]) -> None:
        """The row ``label`` by ``measure``, unless it is there already or the time is over.

        A row that fails says so, and the others are measured; a GPU that has gone wrong ends the run, and the next call
        continues behind that row.
        """
        if label in self.rows:
            return
        if time.monotonic() > self.setting.ends:
            self.left += 1
            return
        failure = None
        try:
            row = measure()
        except Exception as error:
            row, failure = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}, error
        self.rows[label] = row
        print(f"{label}: {row_text(row)}", flush=True)
        self.setting.keep(self.rows)
        if failure is not None and "CUDA error" in str(failure):
            raise failure

    def section(self) -> dict[str, dict]:
        """For the benchmark's result."""
        left = {"left": {"rows": f"{self.left}, the same command continues"}} if self.left else {}
        return {"rows": self.rows, **left}


def row_text(row: Row) -> str:
    return ", ".join(f"{k} {v}" if isinstance(v, str) else f"{k} {v:.4g}" for k, v in row.items())


def result(seconds: dict[str, float], peer: str, agreement: dict[str, float], **more: dict) -> Result:
    """Ratios over the peer; a ratio above 1 is faster than it."""
    return {
        "ratios": {name: seconds[peer] / value for name, value in seconds.items() if name != peer},
        "agreement": agreement,
        "seconds": seconds,
        **more,
    }


def report(what: str, outcome: Result) -> str:
    """The result as lines of text."""
    lines = [f"{what}: " + ", ".join(f"{k} {v}" for k, v in outcome["machine"].items() if k != "settings")]
    for section, values in outcome.items():
        if section != "machine":
            lines += [section] + [f"  {k:44s} {_text(v)}" for k, v in values.items()]
    return "\n".join(lines)


def _text(value: float | str | Row) -> str:
    if isinstance(value, dict):
        return row_text(value)
    return value if isinstance(value, str) else f"{value:12.4g}"


def relative_error(x: Tensor, reference: Tensor) -> float:
    return ((x.float() - reference.float()).norm() / reference.float().norm()).item()


def optimized_copies(model: nn.Module, setting: Setting, example: object) -> dict[str, nn.Module]:
    """``optimize_for_inference`` in every precision that is worth its time here, by name.

    Args:
        example: input of ``model`` on which int8 measures its ranges.
    """
    from ..detection.optimize import optimize_for_inference
    from ..inference.precision import has

    copies = {name: optimize_for_inference(model, name) for name in (("fp32", "bf16") if setting.bf16 else ("fp32",))}
    if setting.device == "cpu" and has("openvino") and has("nncf"):
        for name in [*copies, "int8"]:
            copies[f"{name} OpenVINO"] = optimize_for_inference(
                model, name, backend="openvino", calibration=[example] if name == "int8" else None
            )
    return copies


def not_run(setting: Setting, copies: Iterable[str], *others: str) -> dict[str, dict[str, str]]:
    """The result's section on what was not measured and why; empty where all was.

    Args:
        copies: what :func:`optimized_copies` made, where it was asked.
        others: sides in bf16.
    """
    skipped = {}
    if not setting.bf16:
        asked = [*others, *(["optimized bf16", "optimized bf16 OpenVINO"] if copies else [])]
        skipped = dict.fromkeys(asked, "not run: this hardware does not multiply bf16")
    if copies and "int8 OpenVINO" not in copies:
        skipped["OpenVINO"] = "not run: not installed (pip install 'resnext-det[openvino]'), or not a CPU"
    return {"not run": skipped} if skipped else {}
