"""A detector for Python: an image in, a :class:`~.result.Result` out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from ..annotations.coco import Detections
from ..errors import UserError
from ..images import MAX_MEGAPIXELS
from .inputs import read_pixels
from .result import Result, result_of
from .run import DEFAULT_THRESHOLD, above, check_threshold

ImageLike = str | os.PathLike | Image.Image | np.ndarray


class Detects(Protocol):
    """RGB images (H, W, 3) uint8 -> detections whose category ids are the model's classes."""

    def __call__(self, images: Sequence[np.ndarray], /) -> list[Detections]: ...


class Detector:
    """A trained detector: ``detector(image)``. It may be shared by threads, and pickled.

    Attributes:
        class_names: of the model's classes, in their order.
        category_ids: of the same in the data set it was trained on.
        score_threshold: detections below it are left out; of several, below that of their class.
    """

    def __init__(
        self,
        predictor: Detects,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        *,
        score_threshold: float | Sequence[float] = DEFAULT_THRESHOLD,
        max_megapixels: float = MAX_MEGAPIXELS,
        channels: int = 3,
    ) -> None:
        check_threshold(score_threshold)
        self.predictor = predictor
        self.class_names, self.category_ids = list(class_names), list(category_ids)
        self.score_threshold, self.max_megapixels, self.channels = score_threshold, max_megapixels, channels

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], *, score_threshold: float | None = None, features: bool = False
    ) -> Result | list[Result]:
        """Detect in one image, or in each of several.

        Args:
            images: a file, a Pillow image, an array (H, W, 3) uint8 in RGB, or several of these. With other
                channels (INPUT.CHANNELS) a file, or an array (H, W, C) of the values that files have.
            score_threshold: in place of the detector's own.
            features: also give each box's feature vector.

        Returns:
            A result for one image, a list for several.

        Raises:
            UserError: an image that cannot be read, or an array of another shape or type.
        """
        if isinstance(images, ImageLike):
            return self._one(images, score_threshold, features)
        return [self._one(image, score_threshold, features) for image in images]

    def _one(self, image: ImageLike, score_threshold: float | None, features: bool) -> Result:
        threshold = self.score_threshold if score_threshold is None else score_threshold
        check_threshold(threshold)
        pixels = pixels_of(image, self.max_megapixels, self.channels)
        vectors = None
        if features:
            if not hasattr(self.predictor, "with_features"):
                raise UserError("features: an exported detector gives none; load the weights of the training")
            ((found, vectors),) = self.predictor.with_features([pixels])
        else:
            (found,) = self.predictor([pixels])
        kept = above(found, threshold)
        source = image if isinstance(image, str | os.PathLike) and self.channels == 3 else pixels
        vectors = None if vectors is None else vectors[kept]
        return result_of(found.take(kept), self.class_names, self.category_ids, pixels.shape[:2], source, vectors)


def pixels_of(image: ImageLike, max_megapixels: float = MAX_MEGAPIXELS, channels: int = 3) -> np.ndarray:
    """An image in any of the forms that :class:`Detector` takes as (H, W, 3) uint8, RGB, or of other channels.

    Raises:
        UserError: an image that cannot be read, or an array of another shape or type.
    """
    if isinstance(image, str | os.PathLike):
        return read_pixels(image, channels=channels, max_megapixels=max_megapixels)
    if channels != 3:
        if isinstance(image, Image.Image) or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
            raise UserError(f"image: the detector has INPUT.CHANNELS {channels}; give a file or (H, W, {channels})")
        return np.ascontiguousarray(image, dtype=np.float32)
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise UserError(f"image: Pillow's mode {image.mode} has no fixed range; convert it to RGB")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(f"image: an array {image.shape} of {image.dtype}; give (H, W, 3) uint8 in RGB")
    return image
