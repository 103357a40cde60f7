"""The paper's Tables 1 and 2 for any network of the family: shapes, parameters and multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis

from ..resnext import create_model
from ..variants import block_parameters, parse_name, stage_channels, width_for_cardinality

TABLE_2_CARDINALITIES = (1, 2, 4, 8, 32)
RES2_SIZE = 56  # side of res2's maps in pixels, where Table 2's blocks stand


@dataclass(frozen=True)
class Row:
    """One stage of Table 1.

    Attributes:
        stage: conv1, res2, ..., fc.
        output: side of its map in pixels.
        template: its layers in the paper's notation.
        parameters, multiply_adds: of the stage; norms and pooling count as parameters but not as multiply-adds.
    """

    stage: str
    output: int
    template: str
    parameters: int
    multiply_adds: int


def analyze(name: str, num_classes: int = 1000, size: int | None = None) -> list[Row]:
    """Table 1 of ``name`` for one ``size`` x ``size`` image (224, or 32 for CIFAR networks)."""
    variant = parse_name(name)
    size = size or (32 if variant.cifar else 224)
    model = create_model(name, num_classes).eval()
    counter = FlopCountAnalysis(model, torch.zeros(1, 3, size, size))
    by_module = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_module_and_operator()
    kernel, stride = model.stem.conv1.kernel_size[0], model.stem.conv1.stride[0]
    templates = {"stem": f"{kernel}x{kernel}, {model.stem.out_channels}, stride {stride}"}
    outputs = {"stem": size // stride, "fc": 1}
    for i, (stage, blocks) in enumerate(zip(model.stage_names, variant.blocks, strict=True)):
        middle, out = stage_channels(i, variant.cardinality, variant.width)
        groups = f", C={variant.cardinality}" if variant.cardinality > 1 else ""
        templates[stage] = f"[1x1, {middle}; 3x3, {middle}{groups}; 1x1, {out}] x {blocks}"
        outputs[stage] = size // model.strides[stage]
    templates["fc"] = f"average pool, {num_classes}-d fc, softmax"
    return [
        Row(
            "conv1" if part == "stem" else part,
            outputs[part],
            templates[part],
            sum(p.numel() for p in getattr(model, part).parameters()),
            sum(by_module[part][operator] for operator in ("conv", "linear")),
        )
        for part in ("stem", *model.stage_names, "fc")
    ]


def totals(rows: list[Row]) -> tuple[int, int]:
    """(parameters, multiply-adds) of a whole network."""
    return sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)


def table_1(name: str, num_classes: int = 1000, size: int | None = None) -> str:
    """Table 1 as text."""
    rows = analyze(name, num_classes, size)
    parameters, multiply_adds = totals(rows)
    lines = [f"{'stage':6} {'output':>8}  {name:56} {'parameters':>12} {'multiply-adds':>15}"]
    lines += [
        f"{r.stage:6} {f'{r.output}x{r.output}':>8}  {r.template:56} {r.parameters:12,} {r.multiply_adds:15,}"
        for r in rows
    ]
    return "\n".join([*lines, f"{'all':6} {'':8}  {'':56} {parameters:12,} {multiply_adds:15,}"])


def table_2() -> str:
    """Table 2 as text: the widths that keep a block's cost as the cardinality grows (Eq. 4)."""
    lines = [
        f"{'cardinality C':>14} {'width d':>8} {'group width C d':>16} {'block parameters':>17} "
        f"{f'multiply-adds, {RES2_SIZE}x{RES2_SIZE}':>21}"
    ]
    for cardinality in TABLE_2_CARDINALITIES:
        width = width_for_cardinality(cardinality)
        count = block_parameters(cardinality, width)
        cost = count * RES2_SIZE**2
        lines.append(f"{cardinality:14} {width:8} {cardinality * width:16} {count:17,} {cost:21,}")
    return "\n".join(lines)


def figure_4(cardinality: int = 32, width: int = 4, channels: int = 64) -> str:
    """Figure 4 as text: blocks of two layers in C paths are one dense block, computed both ways on random numbers."""
    generator = torch.Generator().manual_seed(0)
    x, first, second = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (
            (1, channels, 14, 14),
            (cardinality, width, channels, 3, 3),
            (cardinality, channels, width, 3, 3),
        )
    )

    def two_layers(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.relu(F.conv2d(x, a, padding=1)), b, padding=1)

    paths = sum(two_layers(a, b) for a, b in zip(first, second, strict=True))
    dense = two_layers(first.flatten(0, 1), second.permute(1, 0, 2, 3, 4).flatten(1, 2))
    difference = ((paths - dense).abs().max() / dense.abs().max()).item()
    wide = cardinality * width
    return "\n".join(
        [
            f"{cardinality} paths of 3x3, {channels} -> {width} and 3x3, {width} -> {channels}, summed: "
            f"{first.numel() + second.numel():,} weights",
            f"one path of 3x3, {channels} -> {wide} and 3x3, {wide} -> {channels}: {2 * 9 * channels * wide:,} weights",
            f"largest difference of their outputs, relative: {difference:.0e}; with two layers, paths are only width",
        ]
    )
