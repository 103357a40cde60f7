"""What training does to images beside detectron2's resizing, flipping and cropping: by keys, all off by default."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image

from ...errors import UserError

MIN_VISIBLE = 0.1
"""Objects of which pasted ones leave less than this part of the mask are no longer there."""


class CropWithObject(T.RandomCrop):
    """detectron2's RandomCrop, placed so that one object, a random one, lies in it as a whole.

    The crop grows where the object is larger. Other objects are cut as by any crop. Without objects it is RandomCrop.
    """

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> T.Transform:
        """``boxes``: (N, 4) corners in pixels."""
        if not len(boxes):
            return super().get_transform(image)
        box = boxes[np.random.randint(len(boxes))]
        corner, size = [], []
        for side, wanted, low, high in zip(
            image.shape[1::-1], self.get_crop_size(image.shape[:2])[::-1], box[:2], box[2:], strict=True
        ):
            first, last = max(math.floor(low), 0), min(math.ceil(high), side)
            wanted = max(wanted, last - first)
            corner.append(np.random.randint(max(last - wanted, 0), min(first, side - wanted) + 1))
            size.append(wanted)
        return T.CropTransform(*corner, *size)


class ResizeChannels(T.ResizeTransform):
    """Pillow's resizing of each channel by itself: numbers beyond 8 bits stay, and no channel is an alpha."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        size, how = (self.new_w, self.new_h), self.interp if interp is None else interp
        channels = [Image.fromarray(np.ascontiguousarray(c)).resize(size, how) for c in np.moveaxis(img, 2, 0)]
        return np.stack([np.asarray(channel) for channel in channels], axis=2)


def by_channel(resize: T.ResizeTransform, image: np.ndarray) -> T.ResizeTransform:
    """The resizing for ``image``: :class:`ResizeChannels` where it is float32, of other channels than three."""
    same = (resize.h, resize.w, resize.new_h, resize.new_w, resize.interp)
    return ResizeChannels(*same) if image.dtype == np.float32 else resize


class ResizeScale(T.ResizeScale):
    """detectron2's, which leaves no pixel of a narrow image; this one keeps at least one."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = super().get_transform(image)
        transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        return by_channel(transform, image)


def augmentations_from_config(cfg: CfgNode, stock: Sequence[T.Augmentation]) -> list[T.Augmentation]:
    """Those of a training: detectron2's of INPUT, changed and followed by those of our keys.

    Args:
        stock: what detectron2 makes of ``cfg``.
    """
    crop, jitter, color = cfg.INPUT.CROP, cfg.INPUT.SCALE_JITTER, cfg.INPUT.COLOR
    keeps, side, low, high = crop.KEEP_OBJECT, jitter.SIZE, jitter.MIN, jitter.MAX
    found: list[T.Augmentation] = []
    for augmentation in stock:
        if keeps and isinstance(augmentation, T.RandomCrop):
            found.append(CropWithObject(crop.TYPE, crop.SIZE))
        elif side and isinstance(augmentation, T.ResizeShortestEdge):
            found += [ResizeScale(low, high, side, side), T.FixedSizeCrop((side, side), pad=False)]
        else:
            found.append(augmentation)
    colors = (T.RandomBrightness, color.BRIGHTNESS), (T.RandomContrast, color.CONTRAST)
    for kind, by in (*colors, (T.RandomSaturation, color.SATURATION)):
        if by:
            found.append(kind(1 - by, 1 + by))
    return found


def check_augmentation(cfg: CfgNode) -> None:
    """Hold the keys of augmentation against each other.

    Raises:
        UserError: names the key and the fix.
    """
    jitter = cfg.INPUT.SCALE_JITTER
    if jitter.SIZE < 0 or not 0 < jitter.MIN <= jitter.MAX < math.inf:
        raise UserError(
            f"INPUT.SCALE_JITTER SIZE {jitter.SIZE}, MIN {jitter.MIN:g}, MAX {jitter.MAX:g}: give a side in pixels, 0 "
            "for none, and two rising factors above 0"
        )
    for key, by in cfg.INPUT.COLOR.items():
        if not 0 <= by < 1:
            raise UserError(f"INPUT.COLOR.{key} {by:g}: give a part from 0 to below 1: 0.2 is 0.8 to 1.2 times")
    if cfg.INPUT.CROP.KEEP_OBJECT and not cfg.INPUT.CROP.ENABLED:
        raise UserError("INPUT.CROP.KEEP_OBJECT True: there is no crop; set INPUT.CROP.ENABLED True")
    if not 0 <= cfg.INPUT.COPY_PASTE <= 1:
        raise UserError(f"INPUT.COPY_PASTE {cfg.INPUT.COPY_PASTE:g}: give the share of images, from 0 to 1")
    if cfg.INPUT.COPY_PASTE:
        if cfg.MODEL.LOAD_PROPOSALS or cfg.MODEL.KEYPOINT_ON:
            raise UserError("INPUT.COPY_PASTE: not with MODEL.LOAD_PROPOSALS or MODEL.KEYPOINT_ON; set it to 0")
        if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT != "bitmask":
            raise UserError("INPUT.COPY_PASTE: a half hidden object is no polygon; set INPUT.MASK_FORMAT bitmask")
        if cfg.DATASETS.CHECK == "off":
            raise UserError("INPUT.COPY_PASTE: needs the masks, which the check reads; set DATASETS.CHECK auto")


def paste(
    image: torch.Tensor, instances: Instances, other: torch.Tensor, pasted: Instances
) -> tuple[torch.Tensor, Instances]:
    """Objects of another image over this one (Ghiasi et al. 2021), a random half of them, where they stand.

    Args:
        image, other: (3, H, W) and (3, H', W').
        instances, pasted: with ``gt_masks``, BitMasks of these sizes. Of ``instances``, hidden parts are cut off the
            masks and boxes; an object that hardly shows is removed.

    Returns:
        The image, of the size of ``image``, and its objects.
    """
    pasted = pasted[torch.from_numpy(np.random.rand(len(pasted)) < 0.5)]
    (height, width), (high, wide) = image.shape[1:], np.minimum(image.shape[1:], other.shape[1:])
    masks = torch.zeros(len(pasted), height, width, dtype=torch.bool)
    masks[:, :high, :wide] = pasted.gt_masks.tensor[:, :high, :wide]
    shown = masks.flatten(1).any(dim=1)
    masks, classes = masks[shown], pasted.gt_classes[shown]
    if not len(masks):
        return image, instances
    over = masks.any(dim=0)
    image = image.clone()
    image[:, over] = other[:, :high, :wide][:, over[:high, :wide]]
    before = instances.gt_masks.tensor
    visible = before & ~over
    left, whole = visible.flatten(1).sum(dim=1), before.flatten(1).sum(dim=1)
    cut = BitMasks(visible).get_bounding_boxes().tensor
    boxes = torch.where((left < whole)[:, None], cut, instances.gt_boxes.tensor)
    kept = left > MIN_VISIBLE * whole
    result = Instances((height, width))
    result.gt_boxes = Boxes(torch.cat([boxes[kept], BitMasks(masks).get_bounding_boxes().tensor]))
    result.gt_classes = torch.cat([instances.gt_classes[kept], classes])
    result.gt_masks = BitMasks(torch.cat([visible[kept], masks]))
    return image, result
