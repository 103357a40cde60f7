"""The trunk as a detectron2 backbone, built from stock ``MODEL.RESNETS`` keys."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ..errors import UserError
from ..files import shown
from ..resnext import Norm, Trunk, make_resnext_stage, make_stages, make_stem
from ..variants import blocks_per_stage


class ResNeXtBackbone(Trunk, Backbone):
    """A :class:`~resnext_det.resnext.Trunk` behind detectron2's ``Backbone`` interface.

    Its blocks have stock's attributes but are no ``CNNBlockBase``: :mod:`resnext_det.resnext` works without detectron2.

    Args:
        stem, stages, out_features: see :class:`~resnext_det.resnext.Trunk`.
        freeze_at: how many of (stem, res2, res3, res4, res5), in this order, are frozen: their parameters get no
            gradient and their batch norms become ``FrozenBatchNorm2d``.
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[nn.Sequential], out_features: Sequence[str], freeze_at: int = 0
    ) -> None:
        super().__init__(stem, stages, out_features)
        self.freeze(freeze_at)

    @property
    def stages(self) -> list[nn.Sequential]:
        """res2, res3, ..., under stock's name."""
        return [getattr(self, name) for name in self.stage_names]

    def freeze(self, freeze_at: int = 0) -> ResNeXtBackbone:
        """Freeze the first ``freeze_at`` of (stem, res2, ...), as stock's method of this name does; returns itself.

        Raises:
            UserError: more stages than a network has, or fewer than none.
        """
        if not 0 <= freeze_at <= 5:
            raise UserError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}: 0 freezes nothing, 1 the stem, 2 also res2, ... up to 5"
            )
        for name in ("stem", *self.stage_names)[:freeze_at]:
            self.add_module(name, freeze(getattr(self, name)))
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        """{name: channels and stride} of the maps that ``forward`` returns."""
        return {name: ShapeSpec(channels=self.channels[name], stride=self.strides[name]) for name in self.out_features}


def freeze(module: nn.Module) -> nn.Module:
    """Stop the gradients of ``module`` and turn its batch norms into ``FrozenBatchNorm2d``."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return FrozenBatchNorm2d.convert_frozen_batchnorm(module)


def norm_factory(name: str, eps: float) -> Norm:
    """detectron2's norm of that name ("BN", "FrozenBN", "SyncBN", "GN", ...) with the given ``eps``.

    ``eps`` belongs to the weights: statistics trained with one value give other features under another.
    """

    def make(channels: int) -> nn.Module:
        norm = get_norm(name, channels)
        if norm is None:
            raise UserError("MODEL.RESNETS.NORM is empty: the family has a norm after every convolution; try BN")
        norm.eps = eps
        return norm

    return make


def stage_arguments(cfg) -> dict:
    """The keyword arguments of :func:`~resnext_det.resnext.make_resnext_stage` that ``MODEL.RESNETS`` describes.

    Backbone and C4 head both build their stages from these, so they cannot differ.
    """
    keys = cfg.MODEL.RESNETS
    if any(keys.DEFORM_ON_PER_STAGE):
        raise UserError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: the ResNeXt backbone has no deformable convolution")
    # DeepLab's keys of its own backbone.
    for name, known in (("RES4_DILATION", 1), ("RES5_MULTI_GRID", [1, 1, 1]), ("STEM_TYPE", "basic")):
        if name in keys and keys[name] != known:
            raise UserError(f"MODEL.RESNETS.{name} is {keys[name]!r}: the ResNeXt backbone has {known!r} only")
    return {
        "cardinality": keys.NUM_GROUPS,
        "width": keys.WIDTH_PER_GROUP,
        "res2_out_channels": keys.RES2_OUT_CHANNELS,
        "stride_in_1x1": keys.STRIDE_IN_1X1,
        "kind": cfg.MODEL.RESNEXT.KIND if "RESNEXT" in cfg.MODEL else "plain",
        "norm": norm_factory(keys.NORM, keys.NORM_EPS if "NORM_EPS" in keys else 1e-5),
    }


def make_res5(cfg) -> nn.Sequential:
    """res5 of the network that ``cfg`` describes, for the C4 head: (N, 4 * RES2, 14, 14) -> (N, 8 * RES2, 7, 7)."""
    keys = cfg.MODEL.RESNETS
    arguments = stage_arguments(cfg)
    stage = make_resnext_stage(
        3,
        blocks_per_stage(keys.DEPTH)[3],
        keys.RES2_OUT_CHANNELS * 4,
        dilation=keys.RES5_DILATION,
        last=True,
        **arguments,
    )
    if "RESNEXT" in cfg.MODEL and cfg.MODEL.RESNEXT.RES5_EXTRA_NORM:
        stage.add_module("norm", arguments["norm"](stage[-1].out_channels))
    _use_grouped_conv(stage, cfg)
    return stage


def _use_grouped_conv(module: nn.Module, cfg) -> None:
    """MODEL.RESNEXT.GROUPED_CONV; our kernels are imported only where they are asked for."""
    mode = cfg.MODEL.RESNEXT.GROUPED_CONV if "RESNEXT" in cfg.MODEL else "torch"
    if mode != "torch":
        from ..kernels.layer import use_grouped_conv

        use_grouped_conv(module, mode)


@BACKBONE_REGISTRY.register()
def build_resnext_backbone(cfg, input_shape: ShapeSpec) -> ResNeXtBackbone:
    """Build the backbone from ``MODEL.RESNETS.*`` and ``MODEL.BACKBONE.FREEZE_AT``.

    ``NUM_GROUPS`` is the paper's cardinality C and ``WIDTH_PER_GROUP`` its bottleneck width d; C = 1, d = 64 is a plain
    ResNet. Stages behind the last one in ``OUT_FEATURES`` are not built, so that no weight goes unused.
    """
    keys = cfg.MODEL.RESNETS
    out_features = list(keys.OUT_FEATURES)
    names = ["stem", "res2", "res3", "res4", "res5"]
    unknown = [name for name in out_features if name not in names]
    if unknown or not out_features:
        raise UserError(f"MODEL.RESNETS.OUT_FEATURES is {shown(out_features)}: choose from {', '.join(names)}")
    needed = max(names.index(name) for name in out_features)
    arguments = stage_arguments(cfg)
    stem = make_stem(arguments["kind"], input_shape.channels, keys.STEM_OUT_CHANNELS, arguments["norm"])
    stages = make_stages(
        blocks_per_stage(keys.DEPTH)[:needed],
        keys.STEM_OUT_CHANNELS,
        res5_dilation=keys.RES5_DILATION,
        **arguments,
    )
    backbone = ResNeXtBackbone(stem, stages, out_features, cfg.MODEL.BACKBONE.FREEZE_AT)
    _use_grouped_conv(backbone, cfg)
    return backbone


@BACKBONE_REGISTRY.register()
def build_resnext_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The backbone under a feature pyramid (``MODEL.FPN.*``), with a max-pooled P6 as in detectron2's ResNet-FPN."""
    return _pyramid(cfg, build_resnext_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnext_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The same with P6 and P7 convolved from res5, as RetinaNet and FCOS want it."""
    backbone = build_resnext_backbone(cfg, input_shape)
    if "res5" not in backbone.out_features:
        raise UserError(f"MODEL.RESNETS.OUT_FEATURES is {list(backbone.out_features)}: P6 is made from res5; add it")
    return _pyramid(cfg, backbone, LastLevelP6P7(backbone.channels["res5"], cfg.MODEL.FPN.OUT_CHANNELS))


def _pyramid(cfg, backbone: ResNeXtBackbone, top_block: nn.Module) -> FPN:
    missing = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in backbone.out_features]
    if missing or not cfg.MODEL.FPN.IN_FEATURES:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {list(cfg.MODEL.FPN.IN_FEATURES)} and MODEL.RESNETS.OUT_FEATURES "
            f"{list(backbone.out_features)}: the pyramid can only take what the backbone returns"
        )
    return FPN(
        bottom_up=backbone,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
