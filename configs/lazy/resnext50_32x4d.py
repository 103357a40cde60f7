"""ResNeXt-50 32x4d in pieces for LazyConfig projects; every argument may be overridden.

In a project of your own: `model.backbone.bottom_up = backbone`, under whatever pyramid and heads it has.
"""

from detectron2.config import LazyCall as L

from resnext_det.detection.backbone import ResNeXtBackbone, norm_factory
from resnext_det.resnext import Stem, make_resnext_stage, make_stages

norm = L(norm_factory)(name="FrozenBN", eps=1e-5)

backbone = L(ResNeXtBackbone)(
    stem=L(Stem)(in_channels=3, out_channels=64, norm=norm),
    stages=L(make_stages)(
        blocks=[3, 4, 6, 3],
        in_channels=64,
        cardinality=32,
        width=4,
        stride_in_1x1=False,
        norm=norm,
    ),
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=2,
)

# For C4 detectors: the trunk ends at res4, and res5 belongs to the head.
backbone_c4 = L(ResNeXtBackbone)(
    stem=backbone.stem,
    stages=L(make_stages)(blocks=[3, 4, 6], in_channels=64, cardinality=32, width=4, stride_in_1x1=False, norm=norm),
    out_features=["res4"],
    freeze_at=2,
)
res5 = L(make_resnext_stage)(
    stage=3, blocks=3, in_channels=1024, cardinality=32, width=4, stride_in_1x1=False, norm=norm
)

# What torchvision's, timm's and this package's ImageNet weights expect.
pixels = dict(pixel_mean=[123.675, 116.280, 103.530], pixel_std=[58.395, 57.120, 57.375], input_format="RGB")
