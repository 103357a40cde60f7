"""Make a trained network fast to run: constant norms folded, additions and ReLUs fused, channels-last, half precision.

What changes: the copy's layers are no longer those of training (no gradients, no checkpoints of it). How far results
move: fp32 by rounding only; bf16 and fp16 by the precision of the type, see docs/speed.md.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..resnext import Bottleneck, ConvNorm, Stem, Trunk
from .c4_head import ResNeXtC4ROIHeads, SplitRes5, fold_norm, is_pointwise
from .roi_align import SparseBins, pool

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHOICES = ("auto", *DTYPES, "off")
"""Values of MODEL.RESNEXT.INFERENCE_DTYPE."""
CHANNELS_LAST = torch.channels_last


def for_inference(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model that evaluation and prediction run: ``MODEL.RESNEXT.INFERENCE_DTYPE`` says in which precision.

    "off" gives ``model`` itself, all others an optimised copy. ``model`` stays as it is, so training does not notice.
    """
    choice = cfg.MODEL.RESNEXT.INFERENCE_DTYPE if "RESNEXT" in cfg.MODEL else "off"
    if choice not in CHOICES:
        raise UserError(f"MODEL.RESNEXT.INFERENCE_DTYPE is {choice!r}: choose from {', '.join(CHOICES)}")
    return model if choice == "off" else optimize_for_inference(model, choice)


def optimize_for_inference(model: nn.Module, dtype: str = "auto", compile: bool = False) -> nn.Module:
    """A copy of a detector or classifier that gives the same results faster; ``model`` stays as it is.

    Args:
        model: with trunks of grouped bottlenecks and, in a detector, :class:`ResNeXtC4ROIHeads`, on the device where it
            will run. Other parts, and parts whose norms are not constant in evaluation (GN), are kept.
        dtype: of the convolutions, "fp32", "bf16" or "fp16"; "auto" is bf16 where the hardware multiplies it and fp32
            elsewhere. Box decoding, scores and NMS stay in float32.
        compile: compile the trunk with ``torch.compile``: worthwhile for many images of one size.

    Raises:
        UserError: unknown ``dtype``.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: choose from auto, {', '.join(DTYPES)}")
    model = model.module if isinstance(model, DistributedDataParallel) else model
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    kind = DTYPES[_choose(dtype, device)]
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fused = not compile  # torch.compile chooses its own fusions
    heads = getattr(model, "roi_heads", None)
    if isinstance(heads, ResNeXtC4ROIHeads) and heads.fast and _folds(heads.res5):
        heads.optimized = FusedSplitRes5(heads.res5, kind, fused)
        heads.res5 = heads.optimized.blocks
        if device.type == "cuda":
            heads.chunk_size = _chunk_for_memory(heads, kind, device)
    takes_half = getattr(heads, "optimized", None) is not None and _fuse_rpn(model, kind, fused)
    for module in list(model.modules()):
        if isinstance(module, Trunk):
            _fuse_trunk(module, kind, fused)
            if compile:
                module.forward = torch.compile(module.forward)
            if kind != torch.float32 and not (takes_half and module is model.backbone):
                module.register_forward_hook(_to_float)
    return model


def _choose(dtype: str, device: torch.device) -> str:
    """The type that ``dtype`` stands for on ``device``, and a word about it in the log."""
    native = multiplies_bf16(device.type)
    where = "this GPU" if device.type == "cuda" else "this processor"
    if dtype == "auto":
        dtype = "bf16" if native else "fp32"
        logger.info("Inference in %s: %s %s bf16.", dtype, where, "multiplies" if native else "does not multiply")
    elif dtype == "bf16" and not native:
        logger.warning("Inference in bf16: %s does not multiply it, so fp32 is faster and more precise.", where)
    elif dtype == "fp16" and device.type == "cpu":
        logger.warning("Inference in fp16: processors are slow at it; use fp32 or auto.")
    return dtype


@functools.cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether the hardware has bf16 units: AMX or AVX-512 BF16, Arm's bf16, NVIDIA GPUs from Ampere on, AMD's."""
    if device_type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.split(":", 1)[1] for line in file if line.startswith(("flags", "Features"))]
    except OSError:  # not Linux
        return False
    return bool(lines) and not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(lines[0].split())


def _chunk_for_memory(heads: ResNeXtC4ROIHeads, dtype: torch.dtype, device: torch.device) -> int:
    """Regions at once that take about a quarter of the GPU's free memory, between 64 and 1024."""
    free, _ = torch.cuda.mem_get_info(device)
    size = heads.pooler.level_poolers[0].output_size
    bins = size[0] * size[1] if isinstance(size, tuple) else size**2
    first = heads.res5[0]
    values = 2 * bins * first.conv1.weight.shape[1] + bins * heads.res5[-1].conv3.weight.shape[1]
    return int(min(max(free / 4 / (values * dtype.itemsize), 64), 1024))


def _folds(module: nn.Module) -> bool:
    """Whether the norm of every convolution is constant now."""
    return all(fold_norm(m) is not None for m in module.modules() if isinstance(m, ConvNorm))


def _fuse_rpn(model: nn.Module, dtype: torch.dtype, fused: bool) -> bool:
    """Fuse detectron2's ``StandardRPNHead`` of one hidden convolution; False where the model has another."""
    head = getattr(getattr(model, "proposal_generator", None), "rpn_head", None)
    parts = [getattr(head, name, None) for name in ("conv", "objectness_logits", "anchor_deltas")]
    if not all(isinstance(part, nn.Conv2d) and getattr(part, "norm", None) is None for part in parts):
        return False
    relu = getattr(head.conv, "activation", None) is not None
    head.conv = FusedConv(head.conv, dtype, fused, relu=relu)
    head.objectness_logits = FusedConv(head.objectness_logits, dtype, fused, out=torch.float32)
    head.anchor_deltas = FusedConv(head.anchor_deltas, dtype, fused, out=torch.float32)
    return True


class FusedConv(nn.Module):
    """A convolution with its constant norm folded in, optionally a ReLU, optionally added to another tensor.

    A 1x1 convolution is a matrix product in channels-last memory and is asked for as one, which adds to the other
    tensor in place. Others are single oneDNN calls on CPUs, with the weight stored as oneDNN wants it; elsewhere plain
    PyTorch.
    """

    def __init__(
        self, conv: nn.Conv2d, dtype: torch.dtype, fused: bool, relu: bool = False, out: torch.dtype | None = None
    ) -> None:
        super().__init__()
        weight, bias = fold_norm(conv)
        self.product = is_pointwise(conv)
        weight = weight.flatten(1).t().contiguous() if self.product else weight.contiguous(memory_format=CHANNELS_LAST)
        self.register_buffer("weight", weight.detach().to(dtype))
        self.register_buffer("bias", bias.detach().to(dtype))
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.relu, self.out = relu, out
        self.convolve = getattr(conv, "convolve", None)  # MODEL.RESNEXT.GROUPED_CONV
        self.fused = (
            fused
            and weight.device.type == "cpu"
            and dtype != torch.float16
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        )
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'). ``add`` has that shape, is added before the ReLU and may be overwritten."""
        x = x.to(self.weight.dtype).contiguous(memory_format=CHANNELS_LAST)
        if self.product:
            y = self._product(x, add)
        elif self.convolve is not None and add is None:
            y = self.convolve(x, self.weight, shift=self.bias, relu=self.relu)
        elif self.fused and add is None and x.numel():
            padding, stride, dilation, groups = self.geometry
            y = torch.ops.mkldnn._convolution_pointwise(
                x, self._weight_for(x), self.bias, padding, stride, dilation, groups,
                "relu" if self.relu else "none", [], "",
            )  # fmt: skip
        else:
            padding, stride, dilation, groups = self.geometry
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if add is None else y.add_(add)
            y = y.relu_() if self.relu else y
        return y if self.out is None else y.to(self.out)

    def _product(self, x: Tensor, add: Tensor | None) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        shape = *x.shape[:3], self.weight.shape[1]
        x = x.reshape(-1, x.shape[3])
        if add is None:
            y = torch.addmm(self.bias, x, self.weight)
        else:
            y = add.permute(0, 2, 3, 1).reshape(-1, shape[3])
            y = (y if self.bias is None else y.add_(self.bias)).addmm_(x, self.weight)
        return (y.relu_() if self.relu else y).view(shape).permute(0, 3, 1, 2)

    def _weight_for(self, x: Tensor) -> Tensor:
        # oneDNN's layout depends on the sizes it is prepared for. Only a few sizes are kept: pictures vary.
        key = tuple(x.shape)
        if key not in self._packed:
            if len(self._packed) >= 2:
                return self.weight
            padding, stride, dilation, groups = self.geometry
            self._packed[key] = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, padding, stride, dilation, groups, list(key)
            )
        return self._packed[key]


class FusedBottleneck(nn.Module):
    """:class:`~resnext_det.resnext.Bottleneck` from :class:`FusedConv`: no separate norms and few separate additions.

    ``overwrite`` lets it write its sum over its input: right behind another block of its stage, whose result nobody
    else reads.
    """

    def __init__(self, block: Bottleneck, dtype: torch.dtype, fused: bool, overwrite: bool) -> None:
        super().__init__()
        self.conv1 = FusedConv(block.conv1, dtype, fused, relu=True)
        self.conv2 = FusedConv(block.conv2, dtype, fused, relu=True)
        self.conv3 = FusedConv(block.conv3, dtype, fused, relu=True)
        self.shortcut = None if block.shortcut is None else FusedConv(block.shortcut, dtype, fused)
        if self.shortcut is not None and self.conv3.product:  # one addition less: their sum is all that counts
            self.shortcut.bias += self.conv3.bias
            self.conv3.bias = None
        self.residual = block.residual
        self.overwrite = overwrite

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        if not self.residual:
            return self.conv3(y)
        side = x if self.shortcut is None else self.shortcut(x)
        return self.conv3(y, add=side.clone() if side is x and not self.overwrite else side)


class FusedStem(nn.Module):
    """:class:`~resnext_det.resnext.Stem` with the norm folded and the ReLU fused."""

    def __init__(self, stem: Stem, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        self.conv1 = FusedConv(stem.conv1, dtype, fused, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class FusedSplitRes5(SplitRes5):
    """:class:`SplitRes5` of a fused stage: the map's convolutions without shift, the regions' fused."""

    def __init__(self, res5: nn.Sequential, dtype: torch.dtype, fused: bool) -> None:
        super().__init__(res5)
        self.blocks = _fuse_stage(res5, dtype, fused)
        del self._res5, self._folded  # the stage as it was; every method that reads it is replaced below

    def on_map(self, features: Tensor) -> tuple[Tensor, Tensor]:
        first = self.blocks[0]
        x = features.to(first.conv1.weight.dtype).permute(0, 2, 3, 1).contiguous()
        return x @ _matrix(first.conv1), x @ _matrix(first.shortcut)

    def of_regions(self, maps: Sequence[Tensor], bins: Sequence[SparseBins]) -> Tensor:
        first, *others = self.blocks
        y = first.conv2(pool(maps[0], bins[0], first.conv1.bias, relu=True).permute(0, 3, 1, 2))
        y = first.conv3(y, add=pool(maps[1], bins[1], first.shortcut.bias).permute(0, 3, 1, 2))
        for block in others:
            y = block(y)
        return y

    def whole(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def _matrix(conv: FusedConv) -> Tensor:
    """(C, C') of a 1x1 convolution of any stride."""
    return conv.weight if conv.product else conv.weight.flatten(1).t()


def _fuse_stage(stage: nn.Sequential, dtype: torch.dtype, fused: bool) -> nn.Sequential:
    return nn.Sequential(*(FusedBottleneck(block, dtype, fused, overwrite=i > 0) for i, block in enumerate(stage)))


def _fuse_trunk(trunk: Trunk, dtype: torch.dtype, fused: bool) -> None:
    stages = {name: getattr(trunk, name) for name in trunk.stage_names}
    if not _folds(trunk) or not all(type(block) is Bottleneck for stage in stages.values() for block in stage):
        return
    if type(trunk.stem) is Stem:
        trunk.stem = FusedStem(trunk.stem, dtype, fused)
    for name, stage in stages.items():
        setattr(trunk, name, _fuse_stage(stage, dtype, fused))
    if hasattr(trunk, "fc"):
        trunk.fc.register_forward_pre_hook(_first_to_float)


def _first_to_float(module: nn.Module, inputs: tuple) -> tuple:
    return (inputs[0].float(), *inputs[1:])


def _to_float(module: nn.Module, inputs: tuple, output: dict[str, Tensor] | Tensor):
    if isinstance(output, Tensor):
        return output.float()
    return {name: value.float() for name, value in output.items()}
