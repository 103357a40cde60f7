"""The family of networks: one table of depths, one width formula (paper Sec. 3, Tables 1, 2 and 7).

Everything that needs to know how many blocks or channels a network has asks this module; nothing else repeats it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import UserError, nearest

BLOCKS_PER_STAGE: dict[int, tuple[int, ...]] = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
"""Bottleneck blocks in res2..res5. 50, 101 and 200 are the paper's; 14 and 26 are for small data and tests."""

CIFAR_STAGES = 3  # at 32, 16 and 8 pixels (Sec. 5.3)
LAYERS_PER_BLOCK = 3  # 1x1, 3x3, 1x1

KINDS = ("plain", "v2", "se", "d")
"""Of block and stem: the paper's; full pre-activation (He et al., ECCV 2016); squeeze-and-excitation (Hu et al., CVPR
2018); deep stem and pooled shortcuts (He et al., CVPR 2019). The names of the last three are timm's."""


@dataclass(frozen=True)
class Variant:
    """What tells one network of the family from another.

    Attributes:
        depth: number of weighted layers, a key of :data:`BLOCKS_PER_STAGE` or, for CIFAR, 9n + 2.
        cardinality: C, the number of paths in a block (``MODEL.RESNETS.NUM_GROUPS``). 1 is a plain ResNet.
        width: d, the bottleneck width of one path in res2 (``MODEL.RESNETS.WIDTH_PER_GROUP``).
        cifar: three stages after a 3x3 stem for 32x32 images instead of four after a 7x7 stem.
        kind: one of :data:`KINDS`.
    """

    depth: int
    cardinality: int = 1
    width: int = 64
    cifar: bool = False
    kind: str = "plain"

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks per stage."""
        return cifar_blocks(self.depth) if self.cifar else blocks_per_stage(self.depth)

    @property
    def template(self) -> str:
        """The paper's notation, such as ``32x4d``."""
        return f"{self.cardinality}x{self.width}d"

    @property
    def name(self) -> str:
        """The name :func:`parse_name` reads back."""
        plain = self.cardinality == 1 and self.width == 64
        depth = {"v2": f"v2_{self.depth}", "d": f"{self.depth}d"}.get(self.kind, f"{self.depth}")
        name = f"resnet{depth}" if plain else f"resnext{depth}_{self.template}"
        return ("se" if self.kind == "se" else "") + name + ("_cifar" if self.cifar else "")


_LISTED = (
    "resnet14 resnet26 resnet50 resnet101 resnet152 resnet200 "
    "resnext14_8x14d resnext26_32x4d "
    # Table 3: the same cost at growing cardinality
    "resnext50_2x40d resnext50_4x24d resnext50_8x14d resnext50_32x4d "
    "resnext101_2x40d resnext101_4x24d resnext101_8x14d resnext101_32x4d "
    # Table 4: twice the cost; 32x8d is the widely published one
    "resnext101_1x100d resnext101_2x64d resnext101_64x4d resnext101_32x8d resnext152_32x8d "
    # Table 7 and Figure 7
    "resnet29_cifar resnext29_2x64d_cifar resnext29_4x64d_cifar resnext29_8x64d_cifar resnext29_16x64d_cifar "
    "resnext29_1x128d_cifar resnext29_1x192d_cifar resnext29_1x256d_cifar "
    # Full pre-activation: Table 4's ResNet-200, and the blocks of the paper's own CIFAR figures
    "resnetv2_50 resnetv2_101 resnetv2_200 resnextv2_50_32x4d "
    "resnetv2_29_cifar resnextv2_29_8x64d_cifar resnextv2_29_16x64d_cifar "
    # Neighbors of the family
    "seresnet50 seresnext50_32x4d seresnext101_32x4d resnet50d resnext50d_32x4d"
).split()

_NAME = re.compile(
    r"(?P<se>se)?resne(?P<x>x?)t(?P<v2>v2_)?(?P<depth>\d+)(?P<d>d)?"
    r"(?:_(?P<cardinality>\d+)x(?P<width>\d+)d)?(?P<cifar>_cifar)?"
)


def list_models() -> list[str]:
    """Names that :func:`resnext_det.create_model` is tested with; any ``resnext{depth}_{C}x{d}d`` works as well."""
    return list(_LISTED)


def parse_name(name: str) -> Variant:
    """Read ``resnet50``, ``resnext50_32x4d``, ``resnext29_8x64d_cifar``, ... into a :class:`Variant`.

    Other :data:`KINDS`: ``resnetv2_200``, ``resnextv2_50_32x4d``, ``seresnext50_32x4d``, ``resnext50d_32x4d``.

    Raises:
        UserError: the name is not of that form, or its depth is not one of the family's.
    """
    match = _NAME.fullmatch(name)
    kinds = [kind for kind in KINDS[1:] if match and match[kind]]
    grouped = bool(match and match["x"])
    if match is None or grouped != bool(match["cardinality"]) or len(kinds) > 1 or ("d" in kinds and match["cifar"]):
        raise UserError(
            f"unknown model {name!r}: write resnet{{depth}} or resnext{{depth}}_{{C}}x{{d}}d, optionally _cifar; "
            f"resnetv2_{{depth}}, seresnet{{depth}} and resnet{{depth}}d are other kinds{nearest(name, _LISTED)}"
        )
    paths = (int(match["cardinality"]), int(match["width"])) if grouped else (1, 64)
    variant = Variant(int(match["depth"]), *paths, match["cifar"] is not None, *kinds)
    if variant.cardinality < 1 or variant.width < 1:
        raise UserError(f"unknown model {name!r}: cardinality and width must be at least 1")
    variant.blocks  # noqa: B018 (raises for a depth that is not in the family)
    return variant


def blocks_per_stage(depth: int) -> tuple[int, ...]:
    """Bottleneck blocks in res2..res5 of an ImageNet network.

    Raises:
        UserError: ``depth`` is not in :data:`BLOCKS_PER_STAGE`.
    """
    if depth not in BLOCKS_PER_STAGE:
        raise UserError(f"depth {depth} is not in the family: choose one of {', '.join(map(str, BLOCKS_PER_STAGE))}")
    return BLOCKS_PER_STAGE[depth]


def cifar_blocks(depth: int) -> tuple[int, ...]:
    """Blocks per stage of a CIFAR network: 9n + 2 layers make three stages of n blocks (Sec. 5.3).

    Raises:
        UserError: ``depth`` is not 9n + 2.
    """
    blocks, rest = divmod(depth - 2, CIFAR_STAGES * LAYERS_PER_BLOCK)
    if rest or blocks < 1:
        raise UserError(f"a CIFAR network has 9n + 2 layers (11, 20, 29, ...), not {depth}")
    return (blocks,) * CIFAR_STAGES


def stage_channels(stage: int, cardinality: int, width: int, res2_out_channels: int = 256) -> tuple[int, int]:
    """Channels of one stage by the paper's doubling rule (Sec. 3.1): halve the map, double the width.

    Args:
        stage: 0 for res2, 1 for res3, ...
        cardinality: number of paths C.
        width: bottleneck width d of a path in res2.
        res2_out_channels: output channels of res2, 256 in the paper.

    Returns:
        (channels of the block's 3x3 convolution over all paths, output channels of the stage).
    """
    return cardinality * width * 2**stage, res2_out_channels * 2**stage


def block_parameters(cardinality: int, width: int, channels: int = 256) -> int:
    """Weights of one block without batch normalization: C (256 d + 3 * 3 * d * d + d * 256), Eq. 4."""
    return cardinality * (channels * width + 9 * width * width + width * channels)


def width_for_cardinality(cardinality: int, channels: int = 256) -> int:
    """The width d that keeps the cost of a plain 1x64d block at cardinality C (Table 2: Eq. 4 solved for d)."""
    budget = block_parameters(1, 64, channels) / cardinality
    return round(((channels**2 + 9 * budget) ** 0.5 - channels) / 9)
