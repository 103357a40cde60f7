"""From DATASETS keys to batches: the user's own COCO-format sets, training in a resumable order, and test loaders."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ...annotations import formats
from ...annotations.check import ClassCount
from ...annotations.check.files import first_outside
from ...annotations.dataset import Dataset
from ...annotations.formats.voc import metric_year
from ...annotations.image_dicts import ImageDicts
from ...engine.sampler import SeededDataset, TrainingBatches, repeated
from ...engine.signals import begin_worker
from ...errors import UserError, nearest
from ...files import safe_component, shown
from ..class_count import class_count_from_config
from .checked_sets import unchecked_records
from .mapper import CheckedDatasetMapper
from .proposals import attach_proposals

logger = logging.getLogger(__name__)

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


def register_sets(entries: Sequence[Sequence[str]]) -> None:
    """Register the sets of DATASETS.REGISTER, a list of ``[name, annotations, image_root]``.

    ``annotations`` is a COCO JSON file, or a file or folder of another of :data:`~resnext_det.annotations.formats`:
    ``data.yaml:train``, ``VOC2007/ImageSets/Main/trainval.txt``, a folder of LabelMe's files. For those ``image_root``
    may be empty: the images are where the format keeps them. detectron2's VOC sets are read by the same readers.

    Raises:
        UserError: an entry of another form, a taken name, a missing or unusable file or folder.
    """
    for name in [name for name in DatasetCatalog.list() if name.startswith("voc_")]:
        metadata = MetadataCatalog.get(name)
        if metadata.get("dirname") and metadata.get("json_file") is None:
            DatasetCatalog.remove(name)
            file = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
            _register_labels(name, file, os.path.join(metadata.dirname, "JPEGImages"), "voc")
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise UserError(f"DATASETS.REGISTER: {entry!r} is not [name, annotations, image_root]")
        name, file, image_root = entry
        is_json = file.lower().endswith(".json")
        if is_json and not os.path.isfile(file):
            raise UserError(f"DATASETS.REGISTER {name}: json_file {file}: no such file")
        if (image_root or is_json) and not os.path.isdir(image_root):
            raise UserError(f"DATASETS.REGISTER {name}: image_root {image_root}: no such folder")
        try:
            labels = formats.recognize(file)
        except UserError as error:
            raise UserError(f"DATASETS.REGISTER {name}: {error}") from None
        if name in DatasetCatalog.list():
            old = MetadataCatalog.get(name)
            if old.get("json_file") == file and image_root in ("", old.get("image_root")):
                continue
            raise UserError(f"DATASETS.REGISTER {name}: the name is taken by another set; choose another")
        if is_json and labels == "coco":
            register_coco_instances(name, {}, file, image_root)
            continue
        logger.info("%s: %s, read as %s", name, file, labels)
        if file.endswith(".txt") and labels == "voc":
            MetadataCatalog.get(name).set(year=metric_year(file), evaluator_type="pascal_voc")
        _register_labels(name, file, image_root, labels)


def _register_labels(name: str, file: str, image_root: str, labels: str) -> None:
    metadata = MetadataCatalog.get(name).set(json_file=file, labels_format=labels)
    if image_root:
        metadata.set(image_root=image_root)
    if metadata.get("evaluator_type") is None:
        metadata.set(evaluator_type="coco")
    DatasetCatalog.register(name, lambda: unchecked_records(name))


def known_sets(names: Sequence[str], key: str) -> None:
    """Check that every name in DATASETS.TRAIN or TEST is registered, and can name files.

    Raises:
        UserError: one is not or cannot, or there is none.
    """
    if not names:
        raise UserError(f"DATASETS.{key} is empty: name at least one set")
    for name in names:
        if name not in DatasetCatalog.list():
            raise UserError(
                f"DATASETS.{key}: {name!r} is not registered{nearest(name, DatasetCatalog.list())}; "
                "register a set of your own with DATASETS.REGISTER: [[name, annotations, image_root]]"
            )
        component_of(name)


def component_of(name: str) -> str:
    """What the files of a set's results and proposals are named for; a UserError for ``../x``."""
    return safe_component(name.replace(os.sep, "_"), "set")


def load_dicts(
    names: Sequence[str],
    *,
    classes: ClassCount | None,
    filter_empty: bool,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    sets: Mapping[str, Dataset] | None = None,
    follow_links: bool = False,
) -> Sequence[dict]:
    """detectron2 dataset dicts of several sets, with every mistake that can be seen without the images named.

    Args:
        names: registered sets.
        classes: of the model, as many as the data has; None for a model without.
        filter_empty: leave out images without an annotation that is not a crowd.
        min_keypoints: leave out images with fewer visible keypoints.
        proposal_files: precomputed proposals, one file for each set.
        sets: of :func:`~.checked_sets.check_sets`; a set that is not there is read by detectron2.
        follow_links: such a set may have links out of its folder.

    Raises:
        UserError: missing file, an image outside the folder, another number of classes, nothing left.
    """

    def read(name: str) -> list[dict]:
        if name in (sets or {}):
            return list(_of_checked([sets[name]], filter_empty, min_keypoints, None))
        found = get_detection_dataset_dicts([name], filter_empty=filter_empty, min_keypoints=min_keypoints)
        if root := MetadataCatalog.get(name).get("image_root"):
            outside = first_outside(root, (record["file_name"] for record in found), follow_links=follow_links)
            if outside is not None:
                raise UserError(
                    f"set {name}: {shown(outside)} leads out of {root}; write paths below the image folder "
                    "(DATASETS.FOLLOW_LINKS True allows links)"
                )
        return found

    if proposal_files is not None and len(proposal_files) != len(names):
        raise UserError(
            f"DATASETS.PROPOSAL_FILES_TRAIN and _TEST: {len(proposal_files)} files for {len(names)} sets "
            f"({', '.join(names)}); give one for each, tools/dump_proposals.py writes them"
        )
    dicts: Sequence[dict]
    try:
        if all(name in (sets or {}) for name in names):
            dicts = _of_checked([sets[name] for name in names], filter_empty, min_keypoints, proposal_files)
        else:
            parts = [read(name) for name in names]
            if proposal_files is not None:  # set by set: image ids of two sets may be the same
                parts = [attach_proposals(part, file) for part, file in zip(parts, proposal_files, strict=True)]
            dicts = [record for part in parts for record in part]
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: no such file, wanted by the set {', '.join(names)}; datasets/README.md shows what goes "
            "where, and the environment variable DETECTRON2_DATASETS names the folder"
        ) from error
    except AssertionError as error:  # detectron2 asserts that something is left
        raise UserError(f"set {', '.join(names)}: {error}") from error
    for name in names:
        found = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and found is not None and len(found) != classes.number:
            raise UserError(
                f"{classes.key} is {classes.number}, and the set {name} has {len(found)} classes "
                f"({', '.join(found[:5])}{', ...' if len(found) > 5 else ''}): set it to {len(found)}"
            )
    return dicts


def _of_checked(
    sets: Sequence[Dataset], filter_empty: bool, min_keypoints: int, proposal_files: Sequence[str] | None
) -> ImageDicts:
    """As detectron2 chooses them."""
    more: list[dict] | None = None
    if proposal_files is not None:  # set by set: image ids of two sets may be the same
        ids = ([{"image_id": i} for i in dataset.image_ids.tolist()] for dataset in sets)
        more = [
            record for part, file in zip(ids, proposal_files, strict=True) for record in attach_proposals(part, file)
        ]
    dicts = ImageDicts(sets, keypoints=True, more=more)
    if filter_empty:
        usable = np.concatenate([_with_objects(dataset) for dataset in sets])
        logger.info("%d of %d images have no objects to learn", int((~usable).sum()), len(usable))
        dicts = dicts.take(usable)
    if min_keypoints > 0:
        seen = np.array([_visible(record) for record in dicts])
        logger.info("%d images have fewer than %d visible keypoints", int((seen < min_keypoints).sum()), min_keypoints)
        dicts = dicts.take(seen >= min_keypoints)
    assert len(dicts), "no image is left that has objects to learn"
    return dicts


def _with_objects(dataset: Dataset) -> np.ndarray:
    """(I,) images that have an object which is no crowd; all of a set without annotations."""
    if not dataset.annotated:
        return np.ones(len(dataset.image_ids), dtype=bool)
    return np.bincount(dataset.image[dataset.iscrowd == 0], minlength=len(dataset.image_ids)) > 0


def _visible(record: dict) -> int:
    return sum(v > 0 for a in record["annotations"] if "keypoints" in a for v in a["keypoints"][2::3])


class TrainingLoader:
    """Endless batches for one process, in the order of ``seed``, from ``start_batch`` on.

    Args:
        dicts: of :func:`load_dicts`.
        mapper: dataset dict -> what the model takes (image (3, H, W), instances), or None to leave the image out.
        total_batch_size: images per step over all processes.
        group_by_orientation: keep portrait and landscape images in separate batches, which saves padding.
        rank, world_size: this process among those of the run.
        repeat_factors: how often each of ``dicts`` stands in an epoch, on average; None for once.

    Raises:
        UserError: the batch cannot be shared evenly.
    """

    def __init__(
        self,
        dicts: Sequence[dict],
        mapper: Callable[[dict], dict | None],
        *,
        total_batch_size: int,
        seed: int,
        start_batch: int = 0,
        group_by_orientation: bool = True,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeat_factors: Sequence[float] | None = None,
    ) -> None:
        if total_batch_size < 1 or total_batch_size % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}: {world_size} processes cannot share it evenly"
            )
        self.dicts = DatasetFromList(dicts, copy=False) if isinstance(dicts, list) else dicts
        self.start_batch, self.num_workers = start_batch, num_workers
        self.dataset = SeededDataset(self.dicts, mapper, seed)
        self._order = {"batch_size": total_batch_size // world_size, "seed": seed}
        self._order |= {"rank": rank, "world_size": world_size}
        self._epoch = len(dicts)
        if repeat_factors is not None:
            self._epoch, self._order["order_of"] = repeated(repeat_factors)
        if group_by_orientation and total_batch_size > world_size:
            wide = (
                dicts.wider_than_high() if isinstance(dicts, ImageDicts) else [d["width"] > d["height"] for d in dicts]
            )
            if np.unique(wide).size > 1:
                self._order["groups"] = np.array(wide, dtype=np.int8)

    def _batches(self, start: int) -> TrainingBatches:
        return TrainingBatches(self._epoch, start_batch=start, **self._order)

    def __iter__(self) -> Iterator[list[dict]]:
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=self._batches(self.start_batch),
                num_workers=self.num_workers,
                collate_fn=list,
                persistent_workers=self.num_workers > 0,
                worker_init_fn=begin_worker,
            )
        )

    def describe(self, batch: int) -> list[dict]:
        """What is in batch number ``batch`` of the run: place in the order, file, image id, annotation ids."""
        return [
            {"position": position, "index": index}
            | {key: self.dicts[index].get(key) for key in ("file_name", "image_id")}
            | {"annotation_ids": self.dicts.annotation_ids(index) if isinstance(self.dicts, ImageDicts) else None}
            for position, index in next(iter(self._batches(batch)))
        ]


def train_dicts_from_config(cfg, sets: Mapping[str, Dataset] | None = None) -> Sequence[dict]:
    """The dataset dicts of DATASETS.TRAIN, with their proposals where MODEL.LOAD_PROPOSALS asks for them."""
    dicts = load_dicts(
        cfg.DATASETS.TRAIN,
        classes=class_count_from_config(cfg),
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        sets=sets,
        follow_links=cfg.DATASETS.FOLLOW_LINKS,
    )
    return fraction_of(dicts, cfg.DATASETS.FRACTION)


def fraction_of(dicts: Sequence[dict], fraction: float) -> Sequence[dict]:
    """A part of a training set, in its order: the same for every run, and within every larger part.

    Raises:
        UserError: ``fraction`` is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"DATASETS.FRACTION {fraction:g}: give a part above 0, at most 1")
    if fraction == 1:
        return dicts
    chosen = np.random.default_rng(0).permutation(len(dicts))[: max(1, round(fraction * len(dicts)))]
    logger.info("DATASETS.FRACTION %g: %d of %d images", fraction, len(chosen), len(dicts))
    chosen.sort()
    return dicts.take(chosen) if isinstance(dicts, ImageDicts) else [dicts[i] for i in chosen.tolist()]


def train_loader_from_config(
    cfg,
    seed: int,
    start_iteration: int = 0,
    dicts: Sequence[dict] | None = None,
    *,
    sets: Mapping[str, Dataset] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> TrainingLoader:
    """:class:`TrainingLoader` as DATASETS, DATALOADER, INPUT and SOLVER say.

    Args:
        start_iteration: optimizer steps already made, each of SOLVER.ACCUMULATE batches.
        dicts: of :func:`train_dicts_from_config`, where they are there already.
        sets: of :func:`~.checked_sets.check_sets_from_config`.
        rank, world_size: of another process than this one, to look at what it reads.
    """
    dicts = train_dicts_from_config(cfg, sets) if dicts is None else dicts
    return TrainingLoader(
        dicts,
        mapper_from_config(cfg, is_train=True, others=dicts if cfg.INPUT.COPY_PASTE else ()),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE,
        seed=seed,
        start_batch=start_iteration * cfg.SOLVER.ACCUMULATE,
        group_by_orientation=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        rank=comm.get_rank() if rank is None else rank,
        world_size=comm.get_world_size() if world_size is None else world_size,
        repeat_factors=repeat_factors_from_config(cfg, dicts),
    )


def check_sampler(name: str, threshold: float) -> None:
    """Hold DATALOADER.SAMPLER_TRAIN against what can be resumed.

    Raises:
        UserError: a sampler that does not resume at the very next batch; a threshold that repeats nothing.
    """
    if name not in SAMPLERS:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {name}: choose from {', '.join(SAMPLERS)}, which resume at the very next "
            "batch"
        )
    if name == SAMPLERS[1] and not threshold > 0:
        raise UserError(
            f"DATALOADER.REPEAT_THRESHOLD {threshold:g}: {name} repeats images of classes that "
            "fewer than this part of the images have; give a part above 0, such as 0.001"
        )


def repeat_factors_from_config(cfg, dicts: Sequence[dict]) -> list[float] | None:
    """How often DATALOADER.SAMPLER_TRAIN wants each image: detectron2's numbers by the rarest class in it, or None.

    Raises:
        UserError: as :func:`check_sampler`.
    """
    name, threshold = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD
    check_sampler(name, threshold)
    if name != SAMPLERS[1]:
        return None
    more = (
        {"sqrt": cfg.DATALOADER.REPEAT_SQRT} if "REPEAT_SQRT" in cfg.DATALOADER else {}
    )  # of detectron2's main branch
    known = [{"annotations": d.get("annotations", ())} for d in dicts]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(known, threshold, **more)
    logger.info(
        "%s: %d of %d images repeat, up to %.1f times; a round that shows each is %d images",
        *(name, int((factors > 1).sum()), len(dicts), factors.max(), math.ceil(factors.sum())),
    )
    return factors.tolist()


def test_loader_from_config(cfg, name: str, sets: Mapping[str, Dataset] | None = None) -> Iterable[list[dict]]:
    """The images of the set ``name``, one by one, read by the same rules as in training."""
    files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        known = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=False))
        files = [known[name]] if name in known else []
    dicts = load_dicts(
        [name],
        classes=class_count_from_config(cfg),
        filter_empty=False,
        proposal_files=files,
        sets=sets,
        follow_links=cfg.DATASETS.FOLLOW_LINKS,
    )
    return one_by_one(dicts, mapper_from_config(cfg, is_train=False), cfg.DATALOADER.NUM_WORKERS)


def calibration_inputs(cfg, number: int = 16, sets: Mapping[str, Dataset] | None = None) -> Iterator[list[dict]]:
    """About ``number`` images spread over DATASETS.TRAIN, as testing sees them: on these int8 measures its ranges.

    The same in every process, so that all of them evaluate the same network.
    """
    dicts = train_dicts_from_config(cfg, sets)
    mapper = mapper_from_config(cfg, is_train=False)
    for chosen in dicts[:: max(1, len(dicts) // number)]:
        record = mapper(chosen)
        if record is not None:
            yield [record]


def one_by_one(dicts: Sequence[dict], mapper: CheckedDatasetMapper, workers: int) -> Iterable[list[dict]]:
    """detectron2's test loader, whose workers live on while a signal stops the run."""
    loader = build_detection_test_loader(dicts, mapper=mapper, num_workers=workers)
    loader.worker_init_fn = begin_worker
    return loader


def mapper_from_config(cfg, *, is_train: bool, **instead) -> CheckedDatasetMapper:
    """The mapper as INPUT and DATASETS say; ``instead`` holds arguments that stand in for those of the config."""
    return CheckedDatasetMapper(
        cfg,
        is_train=is_train,
        max_megapixels=cfg.DATASETS.MAX_MEGAPIXELS,
        broken_images=cfg.DATASETS.BROKEN_IMAGES,
        **instead,
    )
