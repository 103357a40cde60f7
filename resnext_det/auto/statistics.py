"""What is in a labeled set, as far as settings follow from it; numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..images import read_image

SAMPLE = 64
"""Images whose colors are measured."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of I images with A boxes of K classes.

    Attributes:
        class_names: K.
        images_with: (K,) how many images hold the class.
        short, long: (I,) sides of the images, pixels.
        boxes: (A, 2) width and height of the boxes, pixels; crowds are left out.
        image: (A,) the place of each box's image.
        category: (A,) the place of each box's class.
        mean, std: (3,) RGB, 0 to 255, of a sample of the images.
        gray: all images of the sample are gray.
    """

    class_names: list[str]
    images_with: np.ndarray
    short: np.ndarray
    long: np.ndarray
    boxes: np.ndarray
    image: np.ndarray
    category: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    gray: bool

    def sides(self, short_side: float, max_side: float) -> np.ndarray:
        """(A, 2) width and height of the boxes once the images are resized so."""
        scale = np.minimum(short_side / self.short, max_side / self.long)
        return self.boxes * scale[self.image][:, None]

    @property
    def shares(self) -> np.ndarray:
        """(A,) what each box counts where every class counts alike; their sum is 1."""
        weights = 1 / np.bincount(self.category)[self.category]
        return weights / weights.sum()

    @property
    def most_in_an_image(self) -> int:
        """Boxes in the fullest image."""
        return int(np.bincount(self.image).max(initial=0))


def statistics_of(document: Mapping, image_root: str | Path) -> Statistics:
    """The statistics of a checked set.

    Args:
        document: in COCO's form; images with their sizes.
        image_root: folder of the images.

    Raises:
        UserError: an image of the sample that cannot be read.
    """
    place = {record["id"]: i for i, record in enumerate(document["images"])}
    classes = {record["id"]: k for k, record in enumerate(document["categories"])}
    objects = [a for a in document["annotations"] if not a.get("iscrowd")]
    sizes = np.array([(r["width"], r["height"]) for r in document["images"]], dtype=float)
    image = np.array([place[a["image_id"]] for a in objects], dtype=np.int64)
    category = np.array([classes[a["category_id"]] for a in objects], dtype=np.int64)
    held = np.unique(np.stack([image, category], axis=1), axis=0)[:, 1] if objects else category
    mean, std, gray = _colors([Path(image_root) / r["file_name"] for r in document["images"]])
    return Statistics(
        class_names=[record["name"] for record in document["categories"]],
        images_with=np.bincount(held, minlength=len(classes)),
        short=sizes.min(axis=1),
        long=sizes.max(axis=1),
        boxes=np.array([a["bbox"][2:] for a in objects], dtype=float).reshape(-1, 2),
        image=image,
        category=category,
        mean=mean,
        std=std,
        gray=gray,
    )


def _colors(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Mean and deviation by channel over a sample of the images, each counted alike, and whether all are gray."""
    means, squares, gray = [], [], True
    for path in paths[:: max(1, len(paths) // SAMPLE)][:SAMPLE]:
        pixels = read_image(path, "RGB").reshape(-1, 3).astype(np.float32)
        means.append(pixels.mean(axis=0))
        squares.append((pixels**2).mean(axis=0))
        gray = gray and float(np.ptp(pixels, axis=1).mean()) < 2
    mean = np.mean(means, axis=0)
    return mean, np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 1e-6)), gray
