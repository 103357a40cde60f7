"""Folders of classified images, read strictly, and the loaders that feed training and evaluation."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..engine.causes import cause_of
from ..engine.sampler import Order, SeededDataset, TrainingBatches
from ..engine.signals import begin_worker
from ..errors import UserError
from ..files import open_regular, shown
from ..images import MAX_IMAGE_BYTES, MAX_MEGAPIXELS, check_size, identified
from .augmentation import Sample
from .listing import SHOWN, Paths, listing_of

logger = logging.getLogger(__name__)


class ImageFolder(Dataset):
    """Images in one folder per class: ``root/class/image.jpg``, at any depth below the class.

    Args:
        root: the folder.
        classes: the names and order of the classes, from training; None takes the folder's own, sorted. With it,
            classes without images are fine (and named), and unknown ones are an error.
        folder: a run's; ``folder/cache`` keeps the listing for other processes and runs, while the folders stay as they
            are. With it, all processes of a run call this together.

    Attributes:
        classes: tuple of class names; a label is an index into it.
        files: paths, sorted by class and name.
        labels: (files,) integers.
        order: None, for a uniform shuffle.

    Raises:
        UserError: no such folder, images without class folders, a class folder that training does not know,
            a training class without images.
    """

    order = None

    def __init__(
        self, root: str, classes: Sequence[str] | None = None, folder: str | os.PathLike | None = None
    ) -> None:
        self.root = Path(root)
        listing = listing_of(os.fspath(root), folder)
        found, counts = list(listing.names), listing.counts
        if not found:
            raise UserError(
                f"image folder {root}: {counts['strays']} files and no class folders; sort the images into one folder "
                "per class (for ImageNet's validation set: tools/make_imagenet_val.py)"
            )
        self.classes, numbers = match_classes(root, found, classes)
        self.files = Paths(root, listing.files)
        self.labels = listing.labels if classes is None else np.array(numbers, dtype=np.int64)[listing.labels]
        there = np.bincount(listing.labels, minlength=len(found)).tolist()
        empty = [name for name, number in zip(found, there, strict=True) if not number]
        empty += sorted(set(self.classes) - set(found))
        if counts["strays"]:
            names = ", ".join(map(shown, listing.stray))
            logger.warning("%s: skipped %d files that are not images: %s", root, counts["strays"], names)
        if counts["linked"] or counts["hidden"]:
            logger.info("%s: followed %d links, skipped %d hidden entries", root, counts["linked"], counts["hidden"])
        if classes is None and len(found) < 2:
            below = sum(folder.count("/") == 1 for folder in listing.folders)
            hint = f"name the folder below: {self.root / found[0]}" if below > 1 else "training needs two or more"
            raise UserError(f"image folder {root}: one class, {shown(found[0])}; {hint}")
        if empty and classes is None:
            raise UserError(f"image folder {root}: class folder {empty[0]} has no images ({len(empty)} such)")
        if empty:
            logger.warning("%s: no images of %d classes: %s", root, len(empty), ", ".join(empty[:SHOWN]))
        if not self.files:
            raise UserError(f"image folder {root}: no images")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.files[index]
        return Sample(open_image(path, path), int(self.labels[index]), path)


def open_image(file: str | IO[bytes], name: str) -> Image.Image:
    """An opened image of 8 bits a channel, not decoded yet.

    Raises:
        UserError: not an image; more than 179 megapixels; or 16-bit or float pixels, which have no
            one meaning in 8 bits (Pillow would make nearly all of them white). The message begins with ``name``.
    """
    try:
        opened = open_regular(file, MAX_IMAGE_BYTES) if isinstance(file, str) else file
        image = identified(opened)
        check_size(name, image, MAX_MEGAPIXELS)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on broken files
        raise UserError(f"{name}: not an image: {shown(error)}; remove or replace it") from error
    if image.mode[0] in "IF":
        raise UserError(f"{name}: {image.mode} pixels; save it with 8 bits a channel, scaled as it should be")
    return image


def match_classes(where: str, found: Sequence[str], classes: Sequence[str] | None) -> tuple[tuple[str, ...], list[int]]:
    """(classes in the order of training, the number there of each class found); None takes those found.

    Raises:
        UserError: a class that training does not know.
    """
    if classes is None:
        return tuple(found), list(range(len(found)))
    number = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in found if name not in number]
    if unknown:
        raise UserError(
            f"{where}: class {unknown[0]} ({len(unknown)} such) is not among the {len(classes)} classes of training; "
            "remove it or train with it"
        )
    return tuple(classes), [number[name] for name in found]


class ImageSet(Protocol):
    """What the loaders read: :class:`ImageFolder` or :class:`~.shards.ShardedImages`."""

    classes: tuple[str, ...]
    labels: np.ndarray
    order: Order | None  # of one epoch of training; None for a uniform shuffle

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class _Decoding:
    """``transform``, naming the file when its image cannot be decoded."""

    def __init__(self, transform: Callable[[Sample], Any]) -> None:
        self.transform = transform

    def __call__(self, sample: Sample) -> Any:
        try:
            return self.transform(sample)
        except UserError:
            raise
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:  # of Pillow's decoders
            raise UserError(f"{sample.path}: cannot be decoded: {shown(error)}; replace or remove it") from error


class TrainingLoader:
    """Endless training batches, from batch ``start_batch`` on.

    Yields: uint8 (N, 3, H, W), labels (N,), draws of colors (N, 3, 3).
    """

    def __init__(
        self,
        image_set: ImageSet,
        transform: Callable[[Sample], Any],
        batch_size: int,
        *,
        seed: int,
        workers: int,
        rank: int,
        world_size: int,
        start_batch: int = 0,
    ) -> None:
        self.dataset = SeededDataset(image_set, _Decoding(transform), seed)
        self.order, self.batch_size, self.seed, self.workers = image_set.order, batch_size, seed, workers
        self.rank, self.world_size = rank, world_size
        self.start_batch = start_batch

    def _batches(self, start: int) -> TrainingBatches:
        return TrainingBatches(
            len(self.dataset),
            self.batch_size,
            self.seed,
            rank=self.rank,
            world_size=self.world_size,
            start_batch=start,
            order_of=self.order,
        )

    def describe(self, batch: int) -> list[dict]:
        """Place in the order, and file where images are files, of each sample in batch number ``batch`` of a run."""
        files = getattr(self.dataset.samples, "files", None)
        places = next(iter(self._batches(batch)))
        return [{"position": p, "index": i, **({"file_name": files[i]} if files else {})} for p, i in places]

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        yield from _one_line_errors(
            DataLoader(
                self.dataset,
                batch_sampler=self._batches(self.start_batch),
                num_workers=self.workers,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=begin_worker,
            )
        )


def _one_line_errors(loader: DataLoader) -> Iterator[Any]:
    """The batches of ``loader``; a worker's UserError without the traceback that DataLoader puts into its message."""
    try:
        yield from loader
    except UserError as error:
        raise cause_of(error) from None


class _Transformed(Dataset):
    def __init__(self, image_set: ImageSet, transform: Callable[[Sample], Any]) -> None:
        self.image_set, self.transform = image_set, _Decoding(transform)

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.image_set[index])


def evaluation_loader(
    image_set: ImageSet,
    transform: Callable[[Sample], Any],
    batch_size: int,
    *,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[list[torch.Tensor]]:
    """Every image once over all processes: process ``rank`` reads images rank, rank + world_size, ..."""
    return _one_line_errors(
        DataLoader(
            _Transformed(image_set, transform),
            batch_size=batch_size,
            sampler=range(rank, len(image_set), world_size),
            num_workers=workers,
            worker_init_fn=begin_worker,
        )
    )
