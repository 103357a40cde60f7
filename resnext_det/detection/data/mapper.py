"""From a dataset dict to the model's input: detectron2's DatasetMapper with images read by :mod:`.images`."""

from __future__ import annotations

import copy
import logging
import multiprocessing
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances
from pycocotools.mask import frPyObjects, merge

from ...channels import read_channels
from ...compat import fix_resampling
from ...errors import UserError
from ...images import MAX_MEGAPIXELS, BrokenImage, check_policy, read_header, read_image
from .augmentation import augmentations_from_config, by_channel, paste

logger = logging.getLogger(__name__)

fix_resampling()


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's, which leaves no pixel of an image some 2000 times as wide as high; this one keeps at least one."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
            transform = by_channel(transform, image)
        return transform

    @classmethod
    def instead_of(cls, augmentation: T.Augmentation | T.Transform) -> T.Augmentation | T.Transform:
        """The same resizing as a ``T.ResizeShortestEdge``, and anything else as it is."""
        if type(augmentation) is not T.ResizeShortestEdge:
            return augmentation
        style = "range" if augmentation.is_range else "choice"
        return cls(augmentation.short_edge_length, augmentation.max_size, style, augmentation.interp)


class CheckedDatasetMapper(DatasetMapper):
    """Reads, augments and turns into tensors; an image to skip becomes None, which detectron2's loader replaces.

    Args:
        is_train: with annotations and skipping; without, images only, and a broken one is always an error, since an
            evaluation must see every image that its data set lists.
        augmentations, image_format, other_arguments: detectron2's.
        max_megapixels, broken_images: see :func:`read_image`; ``broken_images`` is its policy.
        min_box_size: boxes with a side shorter than this after resizing and cropping, in pixels, are left out.
        copy_paste: the share of images that objects of another one are pasted into; all objects need masks then.
        channels: of the images; other than 3 they are float32, see :mod:`resnext_det.channels`.
        others: dataset dicts to paste from; nothing is pasted without them.

    ``CheckedDatasetMapper(cfg, is_train)`` reads detectron2's keys; the arguments above may follow by name.

    Attributes:
        skipped: images skipped so far in all worker processes, a shared ``multiprocessing.Value``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list,
        image_format: str,
        max_megapixels: float = MAX_MEGAPIXELS,
        broken_images: str = "error",
        min_box_size: float = 1.0,
        copy_paste: float = 0.0,
        others: Sequence[dict] = (),
        channels: int = 3,
        **other_arguments,
    ) -> None:
        check_policy(broken_images)
        augmentations = [ResizeShortestEdge.instead_of(augmentation) for augmentation in augmentations]
        super().__init__(is_train, augmentations=augmentations, image_format=image_format, **other_arguments)
        self.max_megapixels = max_megapixels
        self.broken_images = broken_images
        self.min_box_size = min_box_size
        self.channels = channels
        self.others, self.copy_paste = others, copy_paste if is_train and len(others) else 0.0
        self.mask_on: bool = other_arguments.get("use_instance_mask", False)
        if self.copy_paste:
            self.use_instance_mask, self.instance_mask_format = True, "bitmask"
        self.skipped = multiprocessing.Value("q", 0)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        arguments = super().from_config(cfg, is_train)
        if is_train and "COPY_PASTE" in cfg.INPUT:
            arguments["augmentations"] = augmentations_from_config(cfg, arguments["augmentations"])
            arguments["copy_paste"] = cfg.INPUT.COPY_PASTE
        if "CHANNELS" in cfg.INPUT:
            arguments["channels"] = cfg.INPUT.CHANNELS
        return arguments

    def __call__(self, dataset_dict: dict) -> dict | None:
        """The dict with ``image``, uint8 (3, H, W), and in training ``instances``; None to skip.

        Raises:
            UserError: an unusable image, or one of another size than the dataset dict says.
        """
        sample = self._read(dataset_dict)
        if self.copy_paste and sample is not None:
            other = None
            if np.random.rand() < self.copy_paste:
                other = self._read(self.others[np.random.randint(len(self.others))])
            instances = sample["instances"]
            if other is not None and instances.has("gt_masks") and other["instances"].has("gt_masks"):
                pasted = paste(sample["image"], instances, other["image"], other["instances"])
                sample["image"], instances = pasted
            if not self.mask_on and instances.has("gt_masks"):
                instances.remove("gt_masks")
            sample["instances"] = self._large_enough(instances)
        return sample

    def _read(self, dataset_dict: dict) -> dict | None:
        dataset_dict = copy.deepcopy(dataset_dict)
        path = dataset_dict["file_name"]
        policy = "error" if self.broken_images == "skip" and not self.is_train else self.broken_images
        if self.channels == 3:
            image = read_image(path, self.image_format, max_megapixels=self.max_megapixels, policy=policy)
        else:
            image = self._read_channels(path, policy)
        if image is None:
            if not self.is_train:
                raise UserError(f"{path}: nothing of it can be decoded; remove it from the data set to evaluate on")
            with self.skipped.get_lock():
                self.skipped.value += 1
                logger.warning("%s: cannot be decoded, skipped (%d so far)", path, self.skipped.value)
            return None
        try:
            utils.check_image_size(dataset_dict, image)
        except utils.SizeMismatchError:
            raise self._size_error(dataset_dict, image) from None

        aug_input = T.AugInput(image, boxes=self._corners(dataset_dict))
        transforms = self.augmentations(aug_input)
        shape = aug_input.image.shape[:2]
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            objects = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
            if self.use_instance_mask and any("segmentation" not in a for a in objects):
                why = "MODEL.MASK_ON is True; set it to False" if self.mask_on else "INPUT.COPY_PASTE is on; set 0"
                raise UserError(f"{path}: an object without segmentation, and {why}")
            for found in objects if self.copy_paste else ():
                if isinstance(found["segmentation"], list):  # of a polygon, only a bitmap can be cut by others
                    found["segmentation"] = merge(frPyObjects(found["segmentation"], *image.shape[:2]))
            self._transform_annotations(dataset_dict, transforms, shape)
            dataset_dict["instances"] = self._large_enough(dataset_dict["instances"])
        return dataset_dict

    def _read_channels(self, path: str, policy: str) -> np.ndarray | None:
        try:
            return read_channels(path, self.channels, max_megapixels=self.max_megapixels)
        except BrokenImage:
            if policy == "error":
                raise
            return None

    def _corners(self, dataset_dict: dict) -> np.ndarray:
        """(N, 4) boxes of the objects to learn, which a crop may look at."""
        objects = [a for a in dataset_dict.get("annotations", ()) if not a.get("iscrowd", 0)]
        corners = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
        return np.array(corners, dtype=np.float64).reshape(-1, 4)

    def _large_enough(self, instances: Instances) -> Instances:
        boxes = instances.gt_boxes
        sides = boxes.tensor[:, 2:] - boxes.tensor[:, :2]
        return instances[boxes.nonempty() & (sides >= self.min_box_size).all(dim=1)]

    def _size_error(self, dataset_dict: dict, image: np.ndarray) -> UserError:
        path = dataset_dict["file_name"]
        height, width = image.shape[:2]
        orientation = 1 if self.channels != 3 else read_header(path, max_megapixels=self.max_megapixels).orientation
        turned = f" after its EXIF orientation {orientation}" if orientation > 1 else ""
        return UserError(
            f"{path}: is {width}x{height}{turned}, but its data set says width {dataset_dict.get('width')}, height "
            f"{dataset_dict.get('height')}; correct them, tools/check_dataset.py lists all such images"
        )
