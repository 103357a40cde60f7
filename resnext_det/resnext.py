"""ResNeXt in plain PyTorch: stem, the block in its three forms, trunk and classifier (paper Sec. 3, Figures 1 and 3).

Parameter names are detectron2's (``stem.conv1.weight``, ``res2.0.conv1.norm.weight``, ``res2.0.shortcut.weight``,
``fc.weight``), so one file serves pretraining and detection. Everything here takes explicit arguments.

Conventions, stated once:
    * Maps are (N, C, H, W). Convolutions have no bias; a norm follows each.
    * A stage halves the map in the 3x3 convolution of its first block (the authors' and torchvision's placement);
      ``stride_in_1x1`` moves it to the first 1x1 (the original ResNet, detectron2's MSRA weights).
    * Shortcuts are identities except where the shape changes, there a 1x1 projection (Sec. 4, option B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import UserError
from .variants import KINDS, parse_name, stage_channels

Norm = Callable[[int], nn.Module]
"""Makes the normalization layer for a number of channels."""

FORMS = ("a", "b", "c")


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of ``images`` images: as on several GPUs, in one process.

    Every group of ``images`` is normalized by its own mean and variance; their means go into the running statistics.
    Batches of up to ``images`` images are one group.

    Raises:
        UserError: a larger batch that does not divide into such groups.
    """

    def __init__(self, channels: int, images: int) -> None:
        super().__init__(channels)
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        groups, rest = divmod(len(x), self.images)
        if not self.training or len(x) <= self.images:
            return super().forward(x)
        if rest:
            raise UserError(f"MODEL.NORM_IMAGES {self.images}: does not divide the {len(x)} images of a forward pass")
        # The groups lie side by side as channels: image i is of group i modulo ``groups``.
        mean, variance, weight, bias = (
            t.repeat(groups) for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        wide = x.reshape(self.images, groups * x.shape[1], *x.shape[2:])
        y = F.batch_norm(wide, mean, variance, weight, bias, True, self.momentum, self.eps)
        with torch.no_grad():
            if self.momentum:  # 0 where a block runs again for its gradient: a mean of equal numbers may round
                self.running_mean.copy_(mean.view(groups, -1).mean(0))
                self.running_var.copy_(variance.view(groups, -1).mean(0))
            self.num_batches_tracked.add_(1)
        return y.view_as(x)


class ConvNorm(nn.Conv2d):
    """Convolution without bias, then its norm, which is the child ``norm`` as in detectron2's ``Conv2d``.

    Attributes:
        convolve: computes the convolution from (x, weight) in place of PyTorch; :mod:`resnext_det.kernels` sets it.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: Norm | None, **kwargs) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=False, **kwargs)
        # "fan_out" counts every output channel, whatever the groups, as the authors' Torch code does (He et al. 2015).
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = norm(out_channels) if norm is not None else None
        self.convolve: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        # Conv2d's own forward, in words that TorchScript reads.
        x = self._conv_forward(x, self.weight, self.bias) if self.convolve is None else self.convolve(x, self.weight)
        return x if self.norm is None else self.norm(x)


class Stem(nn.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max pooling of stride 2 (Table 1, conv1): stride 4 in all."""

    stride = 4

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm | None = nn.BatchNorm2d) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv1 = ConvNorm(in_channels, out_channels, 7, norm, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class CifarStem(nn.Module):
    """One 3x3 convolution at full size (Sec. 5.3)."""

    stride = 1

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm | None = nn.BatchNorm2d) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv1 = ConvNorm(in_channels, out_channels, 3, norm, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv1(x))


class PreactStem(Stem):
    """:class:`Stem` of a pre-activation network: the first block begins with the norm and the ReLU."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__(in_channels, out_channels, None)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class PreactCifarStem(CifarStem):
    """:class:`CifarStem` without norm and ReLU."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__(in_channels, out_channels, None)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x)


class DeepStem(nn.Module):
    """Three 3x3 convolutions in place of the 7x7 one (He et al. 2019, ResNet-C): half the channels in the first two."""

    stride = 4

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv1 = ConvNorm(in_channels, out_channels // 2, 3, norm, stride=2, padding=1)
        self.conv2 = ConvNorm(out_channels // 2, out_channels // 2, 3, norm, padding=1)
        self.conv3 = ConvNorm(out_channels // 2, out_channels, 3, norm, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x))))))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """The aggregated residual block as one grouped convolution, Fig. 3(c).

    1x1 -> norm -> ReLU -> 3x3 in ``groups`` groups -> norm -> ReLU -> 1x1 -> norm, plus the shortcut, then ReLU.

    Args:
        in_channels, out_channels: of the block.
        bottleneck_channels: of the 3x3 convolution over all groups, C * d.
        groups: cardinality C.
        stride: of the block; 1 or 2.
        dilation: of the 3x3 convolution.
        stride_in_1x1: put the stride into the first 1x1 instead of the 3x3.
        norm: makes the norm of each convolution.
        residual: False leaves the shortcut out (Sec. 5.1, residual connections).

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bottleneck_channels: int,
        *,
        groups: int = 1,
        stride: int = 1,
        dilation: int = 1,
        stride_in_1x1: bool = False,
        norm: Norm = nn.BatchNorm2d,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.groups, self.residual = groups, residual
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self._build_branch(in_channels, out_channels, bottleneck_channels, stride_1x1, stride_3x3, dilation, norm)
        project = residual and (stride != 1 or in_channels != out_channels)
        self.shortcut = self._projection(in_channels, out_channels, stride, norm) if project else None

    def _projection(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> ConvNorm:
        return ConvNorm(in_channels, out_channels, 1, norm, stride=stride)

    def _build_branch(self, in_channels, out_channels, bottleneck, stride_1x1, stride_3x3, dilation, norm) -> None:
        self.conv1 = ConvNorm(in_channels, bottleneck, 1, norm, stride=stride_1x1)
        self.conv2 = ConvNorm(
            bottleneck,
            bottleneck,
            3,
            norm,
            stride=stride_3x3,
            padding=dilation,
            dilation=dilation,
            groups=self.groups,
        )
        self.conv3 = ConvNorm(bottleneck, out_channels, 1, norm)

    def branch(self, x: Tensor) -> Tensor:
        """The residual function F(x), before the shortcut and the last ReLU."""
        return self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.residual:
            y = y + (x if self.shortcut is None else self.shortcut(x))
        return F.relu_(y)


class ConcatBottleneck(Bottleneck):
    """The same block as C paths that are concatenated before the last 1x1, Fig. 3(b)."""

    def _build_branch(self, in_channels, out_channels, bottleneck, stride_1x1, stride_3x3, dilation, norm) -> None:
        self.paths = _make_paths(in_channels, bottleneck, self.groups, stride_1x1, stride_3x3, dilation, norm)
        self.conv3 = ConvNorm(bottleneck, out_channels, 1, norm)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat([path(x) for path in self.paths], dim=1))


class SumBottleneck(Bottleneck):
    """The same block as a sum of C whole paths, Fig. 1 (right) and 3(a); batch norm follows the sum (Sec. 4)."""

    def _build_branch(self, in_channels, out_channels, bottleneck, stride_1x1, stride_3x3, dilation, norm) -> None:
        self.paths = _make_paths(in_channels, bottleneck, self.groups, stride_1x1, stride_3x3, dilation, norm)
        for path in self.paths:
            path.add_module("conv3", ConvNorm(bottleneck // self.groups, out_channels, 1, None))
        self.norm = norm(out_channels)

    def branch(self, x: Tensor) -> Tensor:
        total = self.paths[0](x)
        for i, path in enumerate(self.paths):  # TorchScript has no slices of modules
            if i > 0:
                total = total + path(x)
        return self.norm(total)


class PreactBottleneck(Bottleneck):
    """Full pre-activation (He et al., ECCV 2016, Fig. 4e): norm, ReLU, convolution, three times; the sum is left alone.

    A projection shortcut shares the first norm and ReLU. The network's last stage ends with :class:`NormReLU`.
    """

    def _build_branch(self, in_channels, out_channels, bottleneck, stride_1x1, stride_3x3, dilation, norm) -> None:
        super()._build_branch(in_channels, out_channels, bottleneck, stride_1x1, stride_3x3, dilation, norm)
        for conv in (self.conv1, self.conv2, self.conv3):
            conv.norm = None
        self.norm1, self.norm2, self.norm3 = norm(in_channels), norm(bottleneck), norm(bottleneck)

    def _projection(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> ConvNorm:
        return ConvNorm(in_channels, out_channels, 1, None, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu_(self.norm1(x))
        y = self.conv1(active)
        y = self.conv3(F.relu_(self.norm3(self.conv2(F.relu_(self.norm2(y))))))
        if not self.residual:
            return y
        return y + (x if self.shortcut is None else self.shortcut(active))


class NormReLU(nn.Module):
    """Norm and ReLU behind the last block of a pre-activation network."""

    stride = 1

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.out_channels = channels
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(x))


class SqueezeExcitation(nn.Module):
    """Every channel times a factor in (0, 1) that its mean and the others' decide (Hu et al. 2018): same shape.

    The layer between has a sixteenth of the channels, rounded to a multiple of 8 as in timm, whose names these are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(8, int(channels / 16 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu_(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class SEBottleneck(Bottleneck):
    """:class:`Bottleneck` with :class:`SqueezeExcitation` behind the branch."""

    def _build_branch(self, in_channels, out_channels, *arguments) -> None:
        super()._build_branch(in_channels, out_channels, *arguments)
        self.se = SqueezeExcitation(out_channels)

    def branch(self, x: Tensor) -> Tensor:
        return self.se(self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x))))))  # TorchScript has no super


class PooledProjection(ConvNorm):
    """Means of ``pool`` x ``pool`` pixels, then a 1x1 convolution of stride 1 (He et al. 2019, ResNet-D)."""

    def __init__(self, in_channels: int, out_channels: int, pool: int, norm: Norm) -> None:
        super().__init__(in_channels, out_channels, 1, norm)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool, ceil_mode=True, count_include_pad=False)
        x = self._conv_forward(x, self.weight, self.bias)  # TorchScript has no super
        return x if self.norm is None else self.norm(x)


class PooledBottleneck(Bottleneck):
    """:class:`Bottleneck` whose projection of stride 2 is a :class:`PooledProjection`."""

    def _projection(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> ConvNorm:
        return PooledProjection(in_channels, out_channels, stride, norm)


def _make_paths(in_channels, bottleneck, groups, stride_1x1, stride_3x3, dilation, norm) -> nn.ModuleList:
    width = bottleneck // groups
    paths = nn.ModuleList()
    for _ in range(groups):
        path = nn.Sequential()
        path.add_module("conv1", ConvNorm(in_channels, width, 1, norm, stride=stride_1x1))
        path.add_module("relu1", nn.ReLU(inplace=True))
        path.add_module(
            "conv2", ConvNorm(width, width, 3, norm, stride=stride_3x3, padding=dilation, dilation=dilation)
        )
        path.add_module("relu2", nn.ReLU(inplace=True))
        paths.append(path)
    return paths


FORM_BLOCKS: dict[str, type[Bottleneck]] = {"a": SumBottleneck, "b": ConcatBottleneck, "c": Bottleneck}
KIND_BLOCKS: dict[str, type[Bottleneck]] = {"v2": PreactBottleneck, "se": SEBottleneck, "d": PooledBottleneck}
STEMS: dict[str, type[nn.Module]] = {"v2": PreactStem, "d": DeepStem}


def make_stem(kind: str, in_channels: int, out_channels: int, norm: Norm, *, cifar: bool = False) -> nn.Module:
    """The stem of a network of that kind."""
    if cifar:
        return (PreactCifarStem if kind == "v2" else CifarStem)(in_channels, out_channels, norm)
    return STEMS.get(kind, Stem)(in_channels, out_channels, norm)


def make_stage(
    blocks: int,
    in_channels: int,
    out_channels: int,
    bottleneck_channels: int,
    *,
    stride: int,
    groups: int = 1,
    dilation: int = 1,
    stride_in_1x1: bool = False,
    norm: Norm = nn.BatchNorm2d,
    residual: bool = True,
    form: str = "c",
    kind: str = "plain",
) -> nn.Sequential:
    """``blocks`` blocks of one kind; the first has ``stride`` and changes the channels.

    Trunk and C4 head build their stages here, so res5 is the same network in both.

    Raises:
        UserError: unknown kind or form; another form than "c" of a kind that has no other.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """
    if kind not in KINDS:
        raise UserError(f"kind {kind!r}: choose from {', '.join(KINDS)}")
    if form not in FORMS or (kind != "plain" and form != "c"):
        allowed = FORMS if kind == "plain" else ("c",)
        raise UserError(f"form {form!r}: choose from {', '.join(allowed)} (paper Fig. 3)")
    block = KIND_BLOCKS.get(kind, FORM_BLOCKS[form])
    return nn.Sequential(
        *(
            block(
                in_channels if i == 0 else out_channels,
                out_channels,
                bottleneck_channels,
                groups=groups,
                stride=stride if i == 0 else 1,
                dilation=dilation,
                stride_in_1x1=stride_in_1x1,
                norm=norm,
                residual=residual,
            )
            for i in range(blocks)
        )
    )


def make_resnext_stage(
    stage: int,
    blocks: int,
    in_channels: int,
    *,
    cardinality: int,
    width: int,
    res2_out_channels: int = 256,
    first_stride: int = 2,
    dilation: int = 1,
    norm: Norm = nn.BatchNorm2d,
    kind: str = "plain",
    last: bool = False,
    **block_arguments,
) -> nn.Sequential:
    """Stage ``stage`` (0 for res2) with the channels of :func:`variants.stage_channels`.

    A dilated stage keeps the map's size instead of halving it. The ``last`` stage of a pre-activation network ends with
    its norm and ReLU.
    """
    bottleneck, out_channels = stage_channels(stage, cardinality, width, res2_out_channels)
    stride = 1 if dilation > 1 else first_stride
    made = make_stage(
        blocks,
        in_channels,
        out_channels,
        bottleneck,
        stride=stride,
        groups=cardinality,
        dilation=dilation,
        norm=norm,
        kind=kind,
        **block_arguments,
    )
    if last and kind == "v2":
        made.add_module("end", NormReLU(out_channels, norm))
    return made


def recomputed(stage: nn.Sequential, x: Tensor) -> Tensor:
    """``stage(x)``; its gradient runs each block again instead of keeping what the block computed."""
    for block in stage:
        # Nothing in a block is random, so no generator's state needs to be kept.
        x = checkpoint(
            block,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda block=block: (nullcontext(), _norm_statistics_kept(block)),
        )
    return x


@contextmanager
def _norm_statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms in training that leave their running statistics alone: the second run must not count again."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the new statistics' share in the running ones
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Trunk(nn.Module):
    """Stem and stages ``res2``, ``res3``, ...: image in, maps out.

    Args:
        stem: with attributes ``stride`` and ``out_channels``.
        stages: blocks of each stage, each block with ``stride`` and ``out_channels``.
        out_features: names of the maps that :meth:`forward` returns, from ``stem, res2, ..., res5``.

    Attributes:
        strides, channels: {name: stride in pixels}, {name: channels} for the stem and every stage.
        recompute: True keeps only the blocks' inputs in training and runs each block again for its gradient.
        compiled: (N, 3, H, W) -> the maps, in place of stem and stages; an optimized copy may set it.
    """

    recompute = False

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Sequential], out_features: Sequence[str]) -> None:
        super().__init__()
        self.stem = stem
        self.strides = {"stem": stem.stride}
        self.channels = {"stem": stem.out_channels}
        stride = stem.stride
        for i, stage in enumerate(stages):
            name = f"res{i + 2}"
            self.add_module(name, stage)
            for block in stage:
                stride *= block.stride
            self.strides[name], self.channels[name] = stride, stage[-1].out_channels
        self.stage_names = tuple(f"res{i + 2}" for i in range(len(stages)))
        unknown = [name for name in out_features if name not in self.strides]
        if unknown or not out_features:
            raise UserError(f"out_features {list(out_features)}: choose from {', '.join(self.strides)}")
        self.out_features = tuple(out_features)
        self.compiled: nn.Module | None = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {name: (N, channels[name], ~H / strides[name], ~W / strides[name])}."""
        if self.compiled is not None:
            return dict(zip((n for n in self.strides if n in self.out_features), self.compiled(x), strict=True))
        outputs = {}
        x = self.stem(x)
        if "stem" in self.out_features:
            outputs["stem"] = x
        for name in self.stage_names:
            stage = getattr(self, name)
            x = recomputed(stage, x) if self.recompute and torch.is_grad_enabled() else stage(x)
            if name in self.out_features:
                outputs[name] = x
        return outputs

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles in place of the trunk: it cannot look modules up by name."""
        return _ScriptableTrunk(self)


class _ScriptableTrunk(nn.Module):
    """A trunk's forward in TorchScript's words, without recomputation."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.stem = trunk.stem
        self.stages = nn.ModuleDict({name: getattr(trunk, name) for name in trunk.stage_names})
        self.out_features = list(trunk.out_features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        x = self.stem(x)
        if "stem" in self.out_features:
            outputs["stem"] = x
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.out_features:
                outputs[name] = x
        return outputs


class _ScriptableClassifier(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.trunk = _ScriptableTrunk(classifier)
        self.last, self.fc = classifier.out_features[0], classifier.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x)[self.last].mean(dim=(2, 3)))


class Classifier(Trunk):
    """A trunk, global average pooling and the fully connected layer ``fc`` (Table 1).

    ``fc`` starts unbiased, its weights normal with ``fc_std``: small, for even class probabilities (Goyal et al. 2017,
    Sec. 5.1). 0 leaves them as Torch and PyTorch draw them, uniform in +-1 / sqrt(channels), as the authors' code does.
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Sequential], num_classes: int = 1000, fc_std: float = 0.01
    ) -> None:
        super().__init__(stem, stages, out_features=[f"res{len(stages) + 1}"])
        self.fc = nn.Linear(self.channels[self.out_features[0]], num_classes)
        if fc_std:
            nn.init.normal_(self.fc.weight, std=fc_std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        (features,) = super().forward(x).values()
        return self.fc(features.mean(dim=(2, 3)))

    def __prepare_scriptable__(self) -> nn.Module:
        return _ScriptableClassifier(self)


def create_model(
    name: str,
    num_classes: int = 1000,
    form: str = "c",
    residual: bool = True,
    *,
    norm: Norm = nn.BatchNorm2d,
    stem_out_channels: int = 64,
    res2_out_channels: int = 256,
    stride_in_1x1: bool = False,
    fc_std: float = 0.01,
) -> Classifier:
    """A classifier of the family with He-initialised weights.

    Args:
        name: ``resnet50``, ``resnext50_32x4d``, ..., any ``resnext{depth}_{C}x{d}d``, ``_cifar`` for 32x32 images;
            ``resnetv2_200``, ``seresnext50_32x4d``, ``resnext50d_32x4d`` are of other kinds, in form "c" only.
        num_classes: outputs of ``fc``.
        form: "a" (sum of paths), "b" (early concatenation) or "c" (grouped convolution) of Fig. 3; equal functions.
        residual: False builds the network of Sec. 5.1 without shortcuts.
        norm: makes each norm layer from its number of channels.
        stem_out_channels, res2_out_channels, stride_in_1x1: detectron2's keys of the same names.
        fc_std: see :class:`Classifier`.

    Raises:
        UserError: unknown name or form.

    Example:
        >>> model = create_model("resnext50_32x4d")
        >>> model(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
    """
    variant = parse_name(name)
    stem = make_stem(variant.kind, 3, stem_out_channels, norm, cifar=variant.cifar)
    stages = make_stages(
        variant.blocks,
        stem_out_channels,
        cardinality=variant.cardinality,
        width=variant.width,
        res2_out_channels=res2_out_channels,
        stride_in_1x1=stride_in_1x1,
        norm=norm,
        residual=residual,
        form=form,
        kind=variant.kind,
        last_stage=len(variant.blocks) - 1,
    )
    return Classifier(stem, stages, num_classes, fc_std)


def make_stages(
    blocks: Sequence[int],
    in_channels: int,
    *,
    cardinality: int,
    width: int,
    res2_out_channels: int = 256,
    res5_dilation: int = 1,
    last_stage: int = 3,
    **block_arguments,
) -> list[nn.Sequential]:
    """The stages res2, res3, ... with ``blocks`` blocks each; every stage but the first halves the map.

    ``last_stage`` is that of the whole network (3 is res5); a detector's backbone may hold only a part.
    """
    stages = []
    for stage, count in enumerate(blocks):
        stages.append(
            make_resnext_stage(
                stage,
                count,
                in_channels,
                cardinality=cardinality,
                width=width,
                res2_out_channels=res2_out_channels,
                first_stride=1 if stage == 0 else 2,
                dilation=res5_dilation if stage == 3 else 1,
                last=stage == last_stage,
                **block_arguments,
            )
        )
        in_channels = stages[-1][-1].out_channels
    return stages
