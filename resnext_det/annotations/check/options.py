"""What a check looks for, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from ...images import MAX_MEGAPIXELS


@dataclass(frozen=True)
class ClassCount:
    """How many classes the model has, and the key that says so."""

    number: int
    key: str = "MODEL.ROI_HEADS.NUM_CLASSES"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a set is checked.

    Attributes:
        model_classes: how many the model has, where that is to be compared.
        expected_names: classes of the training set. A set to evaluate on must have the same, in any order.
        check_images: open every image; else only see that it is there.
        decode: decode it whole, which finds truncated files; else read its header.
        policy: for broken images, one of :data:`resnext_det.images.POLICIES`.
        max_megapixels: larger images are errors.
        channels: of the images; other than 3, they are read by :mod:`resnext_det.channels`.
        follow_links: allow symbolic links that lead out of the folder.
        drop_unused_root: leave out a supercategory that stands among the categories without annotations.
        for_training: annotations are required, and at least one usable box.
        masks, keypoints: the run needs them of every object.
        max_detections: an evaluation's limit per image and class.
        detections_per_image: the model's limit per image; None where it is not known.
        strict: warnings are errors.
        workers: threads that read images; None is one per core.
        listed: findings of a kind that are kept in full; the others are counted.
    """

    model_classes: ClassCount | None = None
    expected_names: list[str] | None = None
    check_images: bool = True
    decode: bool = True
    policy: str = "error"
    max_megapixels: float = MAX_MEGAPIXELS
    channels: int = 3
    follow_links: bool = False
    drop_unused_root: bool = False
    for_training: bool = False
    masks: bool = False
    keypoints: bool = False
    max_detections: int = 100
    detections_per_image: int | None = None
    strict: bool = False
    workers: int | None = None
    listed: int = 20
