"""The C4 head: RoIAlign on res4, then res5 on every region (He et al. 2016, Appendix A; paper Sec. 5.4)."""

from __future__ import annotations

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

from .backbone import make_res5


@ROI_HEADS_REGISTRY.register()
class ResNeXtC4ROIHeads(Res5ROIHeads):
    """detectron2's ``Res5ROIHeads`` whose res5 is built by the same code as the trunk.

    Parameter names are stock's: ``roi_heads.res5.0.conv1.weight``, ``roi_heads.box_predictor.cls_score.weight``, ...
    """

    @classmethod
    def _build_res5_block(cls, cfg) -> tuple[nn.Sequential, int]:
        res5 = make_res5(cfg)
        return res5, res5[-1].out_channels
