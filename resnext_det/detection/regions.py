"""Fewer regions, at a stated risk: proposals of low objectness need no res5 where images never found anything in them.

The rule is a threshold on the RPN's objectness. What an image needs is known from running all regions once: the least
objectness among the proposals behind its detections. Leaving out any below it changes none of them, since what
non-maximum suppression has removed removes nothing itself. Which part of all images would lose a detection by a
threshold is a binomial's rate, and its bound is Clopper's and Pearson's (1934).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from ..errors import UserError
from .c4_head import ResNeXtC4ROIHeads


def calibrated(needed: Sequence[float], risk: float, confidence: float) -> float:
    """The largest threshold by which, with ``confidence``, at most a part ``risk`` of all images lose a detection.

    Args:
        needed: of each image, drawn as those to come: the least objectness (0 to 1) behind its detections, inf for
            none.

    Raises:
        UserError: too few images to state that.
    """
    return min(sorted(needed)[allowed(len(needed), risk, confidence)], 1.0)


def allowed(number: int, risk: float, confidence: float) -> int:
    """Of ``number`` images, how many may lose something: were the rate above ``risk``, so few would be too unlikely.

    Raises:
        UserError: not even none would.
    """
    left = 1 - confidence
    for lost in range(number + 1):
        log = math.lgamma(number + 1) - math.lgamma(lost + 1) - math.lgamma(number - lost + 1)
        left -= math.exp(log + lost * math.log(risk) + (number - lost) * math.log1p(-risk))
        if left < 0:
            break
    if lost == 0:
        least = math.ceil(math.log1p(-confidence) / math.log1p(-risk))
        raise UserError(f"{number} images: {least} or more are needed to state a risk of {risk:g} with confidence "
                        f"{confidence:g}; give more, or state less")  # fmt: skip
    return lost - 1


@torch.no_grad()
def needed_objectness(model: nn.Module, image: list[dict], thresholds: float | Sequence[float]) -> tuple[float, Tensor]:
    """The least objectness behind the detections of an image, inf for none, and (R,) those of all its proposals.

    Args:
        model: with :class:`~.c4_head.ResNeXtC4ROIHeads` that takes all proposals.
        image: detectron2's input, of one image.
        thresholds: the score from which a detection counts, one for all classes or one for each.

    Raises:
        UserError: another kind of detector.
    """
    heads = getattr(model, "roi_heads", None)
    if not isinstance(model, GeneralizedRCNN) or not isinstance(heads, ResNeXtC4ROIHeads) or heads.min_objectness:
        raise UserError("regions: a detector with ResNeXtC4ROIHeads is needed, MODEL.RESNEXT.MIN_OBJECTNESS 0")
    batch = model.preprocess_image(image)
    maps = model.backbone(batch.tensor)
    proposals, _ = model.proposal_generator(batch, maps, None)
    vectors = heads.region_vectors([maps[name] for name in heads.in_features], [proposals[0].proposal_boxes])
    (found,), (rows,) = heads.box_predictor.inference(heads.box_predictor(vectors), proposals)
    least = found.scores.new_tensor(thresholds)
    kept = found.scores >= (least[found.pred_classes] if least.ndim else least)
    objectness = proposals[0].objectness_logits.double().sigmoid()
    behind = objectness[rows[kept]]
    return float(behind.min()) if len(behind) else math.inf, objectness.cpu()
