"""From DATASETS keys to batches: the user's own COCO-format sets, training in a resumable order, and test loaders."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence

from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..engine.sampler import SeededDataset, TrainingBatches
from ..errors import UserError, nearest
from .mapper import CheckedDatasetMapper

logger = logging.getLogger(__name__)


def register_sets(entries: Sequence[Sequence[str]]) -> None:
    """Register COCO-format sets from DATASETS.REGISTER, a list of ``[name, json_file, image_root]``.

    Raises:
        UserError: an entry of another form, a name that is taken, a file or folder that is not there.
    """
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise UserError(f"DATASETS.REGISTER: {entry!r} is not [name, json_file, image_root]")
        name, json_file, image_root = entry
        if not os.path.isfile(json_file):
            raise UserError(f"DATASETS.REGISTER {name}: json_file {json_file}: no such file")
        if not os.path.isdir(image_root):
            raise UserError(f"DATASETS.REGISTER {name}: image_root {image_root}: no such folder")
        if name in DatasetCatalog.list():
            old = MetadataCatalog.get(name)
            if (old.get("json_file"), old.get("image_root")) == (json_file, image_root):
                continue
            raise UserError(f"DATASETS.REGISTER {name}: the name is taken by another set; choose another")
        register_coco_instances(name, {}, json_file, image_root)


def known_sets(names: Sequence[str], key: str) -> None:
    """Check that every name in DATASETS.TRAIN or TEST is registered.

    Raises:
        UserError: one is not, or there is none.
    """
    if not names:
        raise UserError(f"DATASETS.{key} is empty: name at least one set")
    for name in names:
        if name not in DatasetCatalog.list():
            raise UserError(
                f"DATASETS.{key}: {name!r} is not registered{nearest(name, DatasetCatalog.list())} "
                "Register a set of your own with DATASETS.REGISTER: [[name, json_file, image_root]]"
            )


def load_dicts(
    names: Sequence[str],
    *,
    num_classes: int,
    filter_empty: bool,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
) -> list[dict]:
    """detectron2 dataset dicts of several sets, with every mistake that can be seen without the pictures named.

    Args:
        names: registered sets.
        num_classes: MODEL.ROI_HEADS.NUM_CLASSES, which must be the data's.
        filter_empty: leave out pictures without an annotation that is not a crowd.
        min_keypoints: leave out pictures with fewer visible keypoints.
        proposal_files: precomputed proposals, one file for each set.

    Raises:
        UserError: missing file, another number of classes, nothing left.
    """
    try:
        dicts = get_detection_dataset_dicts(
            list(names), filter_empty=filter_empty, min_keypoints=min_keypoints, proposal_files=proposal_files
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: no such file, wanted by the set {', '.join(names)}; datasets/README.md shows what goes "
            "where, and the environment variable DETECTRON2_DATASETS names the folder"
        ) from error
    except AssertionError as error:  # detectron2 asserts that something is left
        raise UserError(f"set {', '.join(names)}: {error}") from error
    for name in names:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != num_classes:
            raise UserError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, and the set {name} has {len(classes)} classes "
                f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}): set it to {len(classes)}"
            )
    return dicts


def train_loader(
    dicts: list[dict],
    mapper: Callable[[dict], dict | None],
    *,
    total_batch_size: int,
    seed: int,
    start_batch: int = 0,
    group_by_orientation: bool = True,
    num_workers: int = 0,
) -> Iterable[list[dict]]:
    """Endless batches for this process, in an order that ``seed`` decides and that resumes at ``start_batch``.

    Args:
        dicts: of :func:`load_dicts`.
        mapper: dataset dict -> what the model takes (image (3, H, W), instances), or None to leave the picture out.
        total_batch_size: pictures per step over all processes.
        group_by_orientation: keep portrait and landscape pictures in separate batches, which saves padding.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    world_size = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise UserError(f"SOLVER.IMS_PER_BATCH is {total_batch_size}: {world_size} processes cannot share it evenly")
    batch_size = total_batch_size // world_size
    orientation = [int(d["width"] > d["height"]) for d in dicts]
    batches = TrainingBatches(
        len(dicts),
        batch_size,
        seed,
        rank=comm.get_rank(),
        world_size=world_size,
        start_batch=start_batch,
        groups=orientation if group_by_orientation and batch_size > 1 and len(set(orientation)) > 1 else None,
    )
    return DataLoader(
        SeededDataset(DatasetFromList(dicts, copy=False), mapper, seed),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        persistent_workers=num_workers > 0,
    )


def train_loader_from_config(cfg, seed: int, start_batch: int = 0) -> Iterable[list[dict]]:
    """:func:`train_loader` as DATASETS, DATALOADER, INPUT and SOLVER say."""
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN}: only TrainingSampler can resume at the very "
            "next batch, and it is the one used here"
        )
    dicts = load_dicts(
        cfg.DATASETS.TRAIN,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    return train_loader(
        dicts,
        mapper_from_config(cfg, is_train=True),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        start_batch=start_batch,
        group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def test_loader_from_config(cfg, name: str) -> Iterable[list[dict]]:
    """The pictures of the set ``name``, one by one, read by the same rules as in training."""
    return build_detection_test_loader(cfg, name, mapper=mapper_from_config(cfg, is_train=False))


def mapper_from_config(cfg, *, is_train: bool) -> CheckedDatasetMapper:
    """The mapper as INPUT and DATASETS say."""
    return CheckedDatasetMapper(
        cfg,
        is_train=is_train,
        max_megapixels=cfg.DATASETS.MAX_MEGAPIXELS,
        broken_images=cfg.DATASETS.BROKEN_IMAGES,
    )
