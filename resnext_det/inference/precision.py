"""In what a network runs at inference: the type of its convolutions and who computes them."""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass

import torch

from ..errors import UserError
from . import BACKENDS, CHOICES
from .runtime import cpu_flags

logger = logging.getLogger(__name__)

DTYPES = dict(zip(CHOICES[1:-1], (torch.float32, torch.bfloat16, torch.float16, torch.int8), strict=True))


@dataclass(frozen=True)
class Precision:
    """The result of :func:`choose`.

    Attributes:
        name: key of ``DTYPES``.
        openvino: OpenVINO computes; else PyTorch.
        compile: torch.compile makes the trunk's code.
    """

    name: str
    openvino: bool = False
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of what PyTorch computes."""
        return torch.float32 if self.openvino else DTYPES[self.name]

    @property
    def fused(self) -> bool:
        """Whether PyTorch's convolutions are fused by us: torch.compile chooses its own fusions."""
        return not self.compile


def choose(dtype: str, device: torch.device, backend: str = "auto", compile: bool = False) -> Precision:
    """The precision that ``dtype`` and ``backend`` stand for on ``device``, and a word about it in the log.

    Raises:
        UserError: an unknown name, or what cannot be had here.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: choose from auto, {', '.join(DTYPES)}")
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r}: choose from {', '.join(BACKENDS)}")
    native = multiplies_bf16(device.type)
    where = "this GPU" if device.type == "cuda" else "this processor"
    if dtype == "auto":
        dtype = "bf16" if native else "fp32"
        logger.info("Inference in %s: %s %s bf16.", dtype, where, "multiplies" if native else "does not multiply")
    elif dtype == "bf16" and not native:
        logger.warning("Inference in bf16: %s does not multiply it, so fp32 is faster and more precise.", where)
    elif dtype == "fp16" and device.type == "cpu":
        logger.warning("Inference in fp16: processors are slow at it; use fp32 or auto.")
    if dtype == "int8":
        _check_int8(device, backend)
    openvino = dtype == "int8" or backend == "openvino"
    if openvino and compile:
        raise UserError("compile and OpenVINO: each makes the code of the network; choose one")
    if openvino and dtype == "fp16":
        raise UserError("dtype fp16 with OpenVINO: processors have no units for it; choose fp32, bf16 or int8")
    if openvino and dtype != "int8" and (device.type != "cpu" or not has("openvino")):
        lacking = (
            "it is not installed (pip install openvino)" if device.type == "cpu" else f"it does not run on {device}"
        )
        logger.warning("Inference by OpenVINO: %s; PyTorch computes instead.", lacking)
        openvino = False
    return Precision(dtype, openvino, compile)


def _check_int8(device: torch.device, backend: str) -> None:
    if backend == "torch":
        raise UserError("dtype int8: OpenVINO computes it; set the backend to auto or openvino")
    if device.type != "cpu":
        raise UserError(f"dtype int8: runs on CPUs, not on {device}; set MODEL.DEVICE cpu, or use bf16")
    if not (has("openvino") and has("nncf")):
        raise UserError("dtype int8: needs OpenVINO and NNCF: pip install 'resnext-det[openvino]'")
    flags = cpu_flags()
    if flags and flags.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}):
        logger.warning("Inference in int8: this processor has no units for it (VNNI, AMX), so it may not be faster.")


def has(package: str) -> bool:
    """Whether a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


@functools.cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether the hardware has bf16 units: AMX or AVX-512 BF16, Arm's bf16, NVIDIA GPUs from Ampere on, AMD's."""
    if device_type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(cpu_flags())
