"""The whole detector, C4 or on a feature pyramid, as one graph: torch.export and ONNX, any image size and batch size.

The graph is ordinary operators, NMS included. On res4, RoIAlign is two matrix products a region, so no runtime needs an
operator of its own for it; on the levels of a pyramid it is ONNX's. The number of proposals and of detections is fixed
and padded, so every shape but the image's is known beforehand.
"""

from __future__ import annotations

import copy
import io
import math
import os
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...errors import UserError
from ...files import atomic_path, atomic_write
from ...inference.folding import fold_norm
from ...resnext import ConvNorm
from ..c4_head import ResNeXtC4ROIHeads

INPUTS = ("images", "sizes", "original_sizes")
OUTPUTS = ("boxes", "scores", "classes", "count", "masks")
"""The last one of detectors with masks only."""
TORCH_THAT_CAN = "2.14"
"""torch.export of earlier releases ties the sizes of an image down (2.4, 2.6 and 2.9 were tried)."""
SIDES, BATCH = (32, 16384), 1024
"""Smallest and largest side of an image, and most images at a time, that the program takes; see :func:`least_side`."""
KINDS = (
    "export: only Faster and Mask R-CNN with an RPN are known, their heads ResNeXtC4ROIHeads on its fast path or "
    "StandardROIHeads without keypoints"
)
NOTHING = -1e4
"""Score of padding; lower than any logit, and finite in every precision."""
WINDOWS = (10, 24)
"""Sides of the squares, in pixels of the map, that small regions are pooled from; larger ones take all of the map."""


class ExportableDetector(nn.Module):
    """A detector from tensors to tensors.

    Args:
        model: GeneralizedRCNN with a trunk of grouped bottlenecks, and :class:`ResNeXtC4ROIHeads` or, as on a pyramid,
            detectron2's ``StandardROIHeads``; stays as it is.
        regions_at_once: of one image that go through the head together; bounds the memory.

    Raises:
        UserError: another kind of detector.
    """

    def __init__(self, model: nn.Module, regions_at_once: int = 250) -> None:
        super().__init__()
        _check_kind(model)
        model = copy.deepcopy(model).eval().requires_grad_(False)
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)
        self.backbone = fold_norms(model.backbone)
        rpn, heads = model.proposal_generator, model.roi_heads
        self.rpn_head, self.anchors, self.rpn_boxes = rpn.rpn_head, rpn.anchor_generator, rpn.box2box_transform
        self.multiple = model.backbone.size_divisibility or 1
        self.rpn_features, self.features = rpn.in_features, heads.in_features
        self.before_nms, self.proposals = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
        self.rpn_nms = rpn.nms_thresh
        self.min_side = rpn.min_box_size
        self.mask_head = heads.mask_head if heads.mask_on else None
        self.box_head = self.mask_regions = None
        if isinstance(heads, ResNeXtC4ROIHeads):
            self.regions: nn.Module = _Res5(heads)
        else:
            self.regions, self.box_head = _Levels(heads.box_pooler), heads.box_head
            if heads.mask_on:
                self.mask_regions = _Levels(heads.mask_pooler)
        predictor = heads.box_predictor
        self.cls_score, self.bbox_pred, self.boxes = (
            predictor.cls_score,
            predictor.bbox_pred,
            predictor.box2box_transform,
        )
        self.threshold, self.nms = predictor.test_score_thresh, predictor.test_nms_thresh
        self.num_classes = heads.num_classes
        # Never more than there are to choose from: topk refuses that, where detectron2 takes all.
        self.proposals = min(self.proposals, self.before_nms * len(self.rpn_features))
        candidates = self.proposals * self.num_classes
        asked = predictor.test_topk_per_image
        self.detections = candidates if asked < 0 else min(asked, candidates)
        self.regions_at_once = regions_at_once

    def forward(self, images: Tensor, sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect in a batch of images.

        Args:
            images: (N, 3, H, W) float, 0 to 255, in the model's color order, resized as for testing; smaller images
                of a batch are padded to the right and below with anything.
            sizes: (N, 2) int64, height and width of each image in ``images``.
            original_sizes: (N, 2) int64, height and width that boxes shall refer to.

        Returns:
            boxes (N, D, 4) x1, y1, x2, y2 in pixels of the original image, scores (N, D), classes (N, D) int64, best
            first; count (N,) int64: how many of the D are detections. The rest are zeros, class -1. With a mask head
            also masks (N, D, M, M): the probability that each cell of the box belongs to the object.
        """
        height, width = images.shape[2:]
        x = (images - self.pixel_mean) / self.pixel_std
        inside_y = torch.arange(height, device=x.device)[None, :, None] < sizes[:, 0, None, None]
        inside_x = torch.arange(width, device=x.device)[None, None, :] < sizes[:, 1, None, None]
        # Nothing negative is divided: ONNX rounds that towards 0.
        wide, high = ((side + self.multiple - 1) // self.multiple * self.multiple for side in (width, height))
        features = self.backbone(F.pad(x * (inside_y & inside_x)[:, None], (0, wide - width, 0, high - height)))
        limits = sizes.flip(1).repeat(1, 2)[:, None].to(x.dtype)  # (N, 1, 4): width, height, width, height
        regions = self._propose([features[name] for name in self.rpn_features], limits)
        maps = self.regions.prepared([features[name] for name in self.features])
        scores, boxes = self._classify(maps, regions, limits)
        *found, resized_boxes = self._select(scores, boxes, sizes, original_sizes)
        return tuple(found) if self.mask_head is None else (*found, self._masks(maps, resized_boxes, found[2]))

    def _propose(self, features: list[Tensor], limits: Tensor) -> Tensor:
        """(N, proposals, 4): the best boxes of the RPN on all levels; all zero behind the last one."""
        levels = zip(*self.rpn_head(features), self.anchors.cell_anchors, self.anchors.strides, strict=True)
        logits, boxes = (torch.cat(parts, dim=1) for parts in zip(*(self._best(*one) for one in levels), strict=True))
        boxes = _clip(boxes, limits)
        sides = boxes[..., 2:] - boxes[..., :2]
        real = (logits > NOTHING) & (sides > self.min_side).all(2)
        level = torch.arange(len(features), device=boxes.device).repeat_interleave(self.before_nms)
        group = _image_of(boxes) * len(features) + level
        kept = _nms_in_groups(boxes, logits, group, real, self.rpn_nms)
        logits, order = torch.where(kept, logits, NOTHING).topk(self.proposals, dim=1)
        boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
        return torch.where((logits > NOTHING)[:, :, None], boxes, 0.0)

    def _best(self, logits: Tensor, deltas: Tensor, of_cell: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """The highest logits (N, before_nms) of a level, and their boxes (N, before_nms, 4)."""
        number, anchors_a_cell, rows, columns = logits.shape
        sides = ((torch.arange(n, device=logits.device) + self.anchors.offset) * stride for n in (rows, columns))
        y, x = torch.meshgrid(*sides, indexing="ij")
        anchors = (torch.stack([x, y, x, y], dim=2)[:, :, None] + of_cell).flatten(0, 2)
        logits = logits.permute(0, 2, 3, 1).flatten(1)
        deltas = deltas.view(number, anchors_a_cell, 4, rows, columns).permute(0, 3, 4, 1, 2).flatten(1, 3)
        # Padded, so that there are always enough to choose from and the number chosen is no function of the size.
        logits = F.pad(logits, (0, self.before_nms), value=NOTHING)
        deltas = F.pad(deltas, (0, 0, 0, self.before_nms))
        anchors = F.pad(anchors, (0, 0, 0, self.before_nms))
        logits, order = logits.topk(self.before_nms, dim=1)
        deltas = deltas.gather(1, order[:, :, None].expand(-1, -1, 4))
        return logits, self.rpn_boxes.apply_deltas(deltas.flatten(0, 1), anchors[order.flatten()]).view_as(deltas)

    def _classify(self, maps: list[Tensor], regions: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (N, proposals, classes), 0 for padding, and boxes (N, proposals, classes, 4)."""
        parts = []
        for part in regions.split(self.regions_at_once, dim=1):
            seen = self.regions(maps, part)
            vectors = seen.mean(dim=(2, 3)) if self.box_head is None else self.box_head(seen)
            parts.append(vectors.unflatten(0, (-1, part.shape[1])))
        vectors = torch.cat(parts, dim=1).flatten(0, 1)
        probabilities = self.cls_score(vectors).softmax(dim=1)[:, :-1]
        boxes = self.boxes.apply_deltas(self.bbox_pred(vectors), regions.flatten(0, 1)).unflatten(1, (-1, 4))
        boxes = boxes.expand(-1, self.num_classes, -1)  # a class-agnostic predictor has one box for all
        shape = (-1, regions.shape[1])
        real = (regions[:, :, 2] > regions[:, :, 0])[:, :, None]
        return probabilities.unflatten(0, shape) * real, _clip(boxes.unflatten(0, shape), limits[:, None])

    def _masks(self, maps: list[Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        """Probabilities (N, D, M, M) of the masks of those classes within their boxes; 0 where the class is -1."""
        parts, regions = [], self.mask_regions or self.regions
        for some, own in zip(*(all_.split(self.regions_at_once, dim=1) for all_ in (boxes, classes)), strict=True):
            logits = self.mask_head.layers(regions(maps, some))
            if logits.shape[1] > 1:  # else one mask for all classes
                index = own.clamp(min=0).flatten()[:, None, None, None]
                logits = logits.gather(1, index.expand(-1, 1, *logits.shape[2:]))
            parts.append(logits[:, 0].sigmoid().unflatten(0, (-1, some.shape[1])))
        return torch.cat(parts, dim=1) * (classes >= 0)[:, :, None, None]

    def _select(self, scores: Tensor, boxes: Tensor, sizes: Tensor, original_sizes: Tensor) -> tuple[Tensor, ...]:
        """Threshold, NMS in each class, the best of each image, in pixels of the original; their boxes before that."""
        classes = torch.arange(self.num_classes, device=scores.device).expand_as(scores).flatten(1)
        scores, boxes = scores.flatten(1), boxes.flatten(1, 2)
        group = _image_of(boxes) * self.num_classes + classes
        kept = _nms_in_groups(boxes, scores, group, scores > self.threshold, self.nms)
        scores, order = torch.where(kept, scores, 0.0).topk(self.detections, dim=1)
        resized_boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
        scale = (original_sizes / sizes).to(boxes.dtype).flip(1).repeat(1, 2)[:, None]
        boxes = _clip(resized_boxes * scale, original_sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype))
        there = (scores > 0) & (boxes[..., 2:] > boxes[..., :2]).all(2)
        # A box that rounding has emptied leaves; the others close ranks.
        scores, ranks = torch.where(there, scores, 0.0).topk(self.detections, dim=1)
        there = scores > 0
        both = (boxes, resized_boxes)
        boxes, resized_boxes = (b.gather(1, ranks[:, :, None].expand(-1, -1, 4)) * there[:, :, None] for b in both)
        classes = torch.where(there, classes.gather(1, order).gather(1, ranks), -1)
        return boxes, scores, classes, there.sum(1), resized_boxes


class _Res5(nn.Module):
    """What a C4 head sees of regions: RoIAlign and res5."""

    def __init__(self, heads: ResNeXtC4ROIHeads) -> None:
        super().__init__()
        self.res5 = fold_norms(heads.res5)
        align = heads.pooler.level_poolers[0]
        self.bins, self.scale, self.sampling = align.output_size, align.spatial_scale, align.sampling_ratio

    def prepared(self, features: list[Tensor]) -> list[Tensor]:
        """A 1x1 convolution without bias commutes with RoIAlign, so it runs once on the map (see c4_head)."""
        return [F.conv2d(features[0], conv.weight) for conv in (self.res5[0].conv1, self.res5[0].shortcut)]

    def forward(self, maps: list[Tensor], regions: Tensor) -> Tensor:
        """(N, R, 4) -> (N * R, C, bins, bins)."""
        first = self.res5[0]
        boxes, image = (regions * self.scale - 0.5).flatten(0, 1), _image_of(regions).flatten()
        # A 1x1 convolution of stride 2 reads the even bins only.
        convs = (first.conv1, first.shortcut)
        steps = [conv.stride[0] for conv in convs]
        parts = _pool_by_size(maps, boxes, image, self.bins, steps, self.sampling)
        inner, outer = (part + conv.bias[:, None, None] for part, conv in zip(parts, convs, strict=True))
        y = first.conv3(F.relu(first.conv2(F.relu(inner))))
        y = F.relu(y + outer)
        for block in self.res5[1:]:
            y = block(y)
        return y


class _Levels(nn.Module):
    """What ``StandardROIHeads`` sees of regions: RoIAlign on the level of their size."""

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.aligns = pooler.level_poolers
        self.rule = pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level

    def prepared(self, features: list[Tensor]) -> list[Tensor]:
        """The maps as they are."""
        return features

    def forward(self, maps: list[Tensor], regions: Tensor) -> Tensor:
        """(N, R, 4) -> (N * R, C, bins, bins)."""
        boxes = regions.flatten(0, 1)
        rois = torch.cat([_image_of(regions).flatten()[:, None].to(boxes.dtype), boxes], dim=1)
        level = assign_boxes_to_levels([Boxes(boxes)], *self.rule)[:, None]
        found = torch.zeros((), device=boxes.device)
        for i, (align, features) in enumerate(zip(self.aligns, maps, strict=True)):
            # Every region on every level, so that no shape depends on the data; emptied ones cost nothing.
            pooled = align(features, torch.where(level == i, rois, 0.0))
            found = torch.where((level == i)[:, :, None, None], pooled, found)
        return found


def _check_kind(model: nn.Module) -> None:
    heads = getattr(model, "roi_heads", None)
    c4 = isinstance(heads, ResNeXtC4ROIHeads)
    # Heads derived from StandardROIHeads, as cascades are, do something else.
    standard = type(heads) is StandardROIHeads and not heads.keypoint_on
    if not isinstance(model, GeneralizedRCNN) or not (c4 or standard) or not isinstance(model.proposal_generator, RPN):
        raise UserError(KINDS)
    if type(model.proposal_generator.anchor_generator) is not DefaultAnchorGenerator:
        raise UserError("export: of anchor generators only DefaultAnchorGenerator is known")
    poolers = [heads.box_pooler, *([heads.mask_pooler] if heads.mask_on else [])] if standard else []
    if any(not isinstance(align, ROIAlign) for pooler in poolers for align in getattr(pooler, "level_poolers", [None])):
        raise UserError(
            "export: only the poolers ROIAlign and ROIAlignV2 are known; see MODEL.ROI_BOX_HEAD.POOLER_TYPE"
        )
    if heads.mask_on and not isinstance(heads.mask_head, MaskRCNNConvUpsampleHead):
        raise UserError(
            f"export: of mask heads only MaskRCNNConvUpsampleHead is known, and not {type(heads.mask_head).__name__}; "
            "set MODEL.MASK_ON False"
        )
    if getattr(heads.box_predictor, "use_sigmoid_ce", False):  # of detectron2's main branch
        raise UserError("export: MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True is not known")
    if getattr(model, "for_inference", False):
        raise UserError("export: give the detector itself, not one that optimize_for_inference has rewritten")
    if c4 and heads.plan() is None:
        raise UserError(KINDS)


def fold_norms(module: nn.Module) -> nn.Module:
    """Replace every convolution and its constant norm by one convolution with bias; the results are the same."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            folded = fold_norm(child)
            if folded is None:
                raise UserError(f"export: the norm of {name} depends on the batch; only batch norms can be exported")
            conv = nn.Conv2d(
                child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding, child.dilation,
                child.groups,
            )  # fmt: skip
            conv.weight, conv.bias = (nn.Parameter(tensor.detach(), requires_grad=False) for tensor in folded)
            setattr(module, name, conv)
        else:
            fold_norms(child)
    return module


def sampling_matrix(
    low: Tensor,
    high: Tensor,
    size: int,
    bins: int,
    sampling_ratio: int,
    part: tuple[Tensor, int] | None = None,
    longest: int | None = None,
) -> Tensor:
    """RoIAlign's interpolation matrix along one axis, (..., bins, size or pixels), without a loop over the data.

    Equal to :func:`~resnext_det.detection.roi_align.axis_weights` for boxes inside the image.

    Args:
        low, high: (...) bounds in map pixels, the half pixel already subtracted.
        size: of the map along this axis; may be symbolic.
        part: the first pixel of the matrix (...) and their number, where it does not have all of the map.
        longest: that a box is, in pixels of the map; ``size`` by default.
    """
    step = (high - low) / bins
    if sampling_ratio > 0:
        samples, most = torch.full_like(step, sampling_ratio), sampling_ratio
    else:
        samples, most = step.ceil(), (size if longest is None else longest) // bins + 2
    like = {"dtype": low.dtype, "device": low.device}
    begin = low[..., None] + torch.arange(bins, **like) * step[..., None]
    sample = torch.arange(most, **like)
    offset = (sample + 0.5) * step[..., None] / samples.clamp(min=1)[..., None]  # (..., most)
    position = begin[..., :, None] + offset[..., None, :]  # (..., bins, most)
    counted = (sample < samples[..., None])[..., None, :] & (position >= -1) & (position <= size)
    weight = counted / samples.clamp(min=1)[..., None, None]
    position = position.clamp(min=0).clamp(max=size - 1)
    if part is not None:
        first, size = part
        position = position - first[..., None, None]
    distance = (position[..., None] - torch.arange(size, **like)).abs()
    return ((1 - distance).clamp(min=0) * weight[..., None]).sum(dim=-2)


def _pool_by_size(
    maps: Sequence[Tensor], boxes: Tensor, image: Tensor, bins: tuple[int, int], steps: Sequence[int], sampling: int
) -> list[Tensor]:
    """RoIAlign of every ``steps``-th bin on each of the maps.

    A region is two small matrix products on the square of :data:`WINDOWS` that it lies in, or on all of the map.

    Args:
        maps: (N, C, H, W) each.
        boxes: (R, 4) in map pixels, the half pixel already subtracted. image: (R,).

    Returns:
        (R, C, bins / step, bins / step) for each map.
    """
    number, _, height, width = maps[0].shape
    start = boxes[:, :2].floor().clamp(min=0)
    side = (boxes[:, 2:].floor() + 2 - start).amax(dim=1)
    limits = (-math.inf, *WINDOWS, math.inf)
    groups = [(side > low) & (side <= high) for low, high in pairwise(limits)]
    tables = [part.permute(0, 2, 3, 1).flatten(0, 2) for part in maps]
    found: list[list[Tensor]] = [[] for _ in maps]
    for group, window in zip(groups, (*WINDOWS, 0), strict=True):
        chosen = group.nonzero()[:, 0]
        x1, y1, x2, y2 = boxes[chosen].unbind(1)
        if window:
            left, top = start[chosen].unbind(1)
            rows = sampling_matrix(y1, y2, height, bins[0], sampling, (top, window), window)
            columns = sampling_matrix(x1, x2, width, bins[1], sampling, (left, window), window)
            pixel = torch.arange(window, device=boxes.device)
            line = image[chosen, None] * height + (top.long()[:, None] + pixel).clamp(max=height - 1)
            place = line[:, :, None] * width + (left.long()[:, None] + pixel).clamp(max=width - 1)[:, None]
        else:  # the images' maps as one, above each other
            stacked = -image[chosen] * height, number * height
            rows = sampling_matrix(y1, y2, height, bins[0], sampling, stacked)
            columns = sampling_matrix(x1, x2, width, bins[1], sampling)
        for part, table, step, pooled in zip(maps, tables, steps, found, strict=True):
            some_rows, some_columns = rows[:, ::step], columns[:, ::step]
            # torch.export cannot see through reshapes that split a product of the image's size: none is made here.
            if window:
                square = table.index_select(0, place.flatten()).unflatten(0, (-1, window, window)).flatten(2)
                lines = (some_rows @ square).unflatten(2, (window, -1))
                pooled.append((some_columns[:, None] @ lines).permute(0, 3, 1, 2))
            else:
                lines = some_rows.flatten(0, 1) @ part.transpose(0, 1).flatten(1, 2)
                lines = lines.unflatten(1, (-1, some_rows.shape[1])).transpose(0, 1)
                pooled.append(lines @ some_columns.transpose(1, 2)[:, None])
    before, place = 0, torch.zeros_like(image)
    for group in groups:
        place = torch.where(group, group.long().cumsum(0) - 1 + before, place)
        before = before + group.sum()
    return [torch.cat(pooled).index_select(0, place) for pooled in found]


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), limits)


def _image_of(boxes: Tensor) -> Tensor:
    """(N, K, 4) -> (N, K) index of the image."""
    return torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, boxes.shape[1])


def _nms_in_groups(boxes: Tensor, scores: Tensor, group: Tensor, among: Tensor, threshold: float) -> Tensor:
    """Mask of what non-maximum suppression keeps, among the boxes of the same group; all (N, K) but boxes (N, K, 4)."""
    chosen = among.flatten().nonzero()[:, 0]
    some = boxes.flatten(0, 1)[chosen]
    # Groups are moved apart so far that they cannot overlap, as torchvision's batched_nms does.
    apart = boxes.max() + 1
    some = some + (group.flatten()[chosen].to(boxes.dtype) * apart)[:, None]
    kept = chosen[torchvision.ops.nms(some, scores.flatten()[chosen], threshold)]
    mask = torch.zeros_like(among.flatten())
    return mask.index_fill(0, kept, True).view_as(among)


def example_inputs(device: str | torch.device = "cpu", number: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """What the graph is traced with; its sizes do not stay in it."""
    sizes = torch.tensor([[160, 192]] * number, device=device)
    return torch.rand(number, 3, 160, 192, device=device) * 255, sizes, sizes * 2


def export_program(model: nn.Module) -> torch.export.ExportedProgram:
    """The detector as ``torch.export.ExportedProgram`` with :data:`INPUTS` and :data:`OUTPUTS`.

    ``torch.export.save`` writes it; ``torch.export.load(file).module()`` runs without this package and detectron2.

    Raises:
        UserError: another kind of detector, or a torch that cannot.
    """
    detector = ExportableDetector(model)
    batch = torch.export.Dim("batch", min=1, max=BATCH)
    # At the top of a pyramid, whose stride is twice the multiple, maps of one cell would be another program.
    least = max(SIDES[0], 2 * detector.multiple + 1)
    height, width = (torch.export.Dim(name, min=least, max=SIDES[1]) for name in ("height", "width"))
    shapes = {"images": {0: batch, 2: height, 3: width}, "sizes": {0: batch}, "original_sizes": {0: batch}}
    try:
        with torch.no_grad():
            return torch.export.export(
                detector, example_inputs(detector.pixel_mean.device), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # what it raises differs from release to release
        if torch.__version__ < TORCH_THAT_CAN:
            raise UserError(
                f"export: torch {torch.__version__} cannot export a detector for every size of image "
                f"({type(error).__name__}); install torch {TORCH_THAT_CAN} or later"
            ) from error
        raise


def least_side(program: torch.export.ExportedProgram) -> int:
    """Of an image that the program takes."""
    return max(int(bounds.lower) for bounds in program.range_constraints.values())


def export_onnx(program: torch.export.ExportedProgram, path: str | os.PathLike) -> None:
    """Write the program as ONNX: standard operators of opset 18 and later.

    Raises:
        UserError: the packages it takes are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}: pip install 'resnext-det[export]'") from error
    with atomic_path(path) as unfinished:
        torch.onnx.export(
            program,
            (),
            os.fspath(unfinished),
            dynamo=True,
            input_names=INPUTS,
            output_names=OUTPUTS[: len(program.graph_signature.user_outputs)],
            external_data=False,
            verbose=False,
        )


def save_program(program: torch.export.ExportedProgram, path: str | os.PathLike) -> None:
    """Write the program for ``torch.export.load``, which needs ``import torchvision`` before it (for NMS)."""
    data = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.export.save(program, data)
    with atomic_write(path, "wb") as file:
        file.write(data.getbuffer())
