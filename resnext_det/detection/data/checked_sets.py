"""The dataset check in front of training and evaluation: each COCO-format set is checked once and read as fixed.

The main process checks while the others wait; the set as one value, or the error, then goes to all of them. Loaders,
evaluator and replay are given these values. detectron2's DatasetCatalog stays as it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils import comm

from ... import __version__
from ...annotations import formats
from ...annotations.check import CheckedDataset, ClassCount, Options, inspect_document, open_set, refuse_classes
from ...annotations.column_file import Unusable, digest_of, kept, key_of, map_columns, recalled, write_columns
from ...annotations.dataset import Dataset, Texts
from ...annotations.reading import return_memory
from ...engine.processes import decided_by_main
from ...errors import UserError, nearest
from ...files import misfit, place_in_shard
from ...images import check_policy
from ..class_count import class_count_from_config

logger = logging.getLogger(__name__)

LEVELS = ("auto", "full", "headers", "json", "off")
"""How much of a set is checked: every pixel, every image's header, only the JSON and that the files are there."""

DECODED_AT_MOST = 20_000
"""Images that the level "auto" decodes; of larger sets it reads the headers."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Options):
    """How the sets of a run are checked.

    Attributes:
        level: one of :data:`LEVELS`, in place of ``check_images`` and ``decode``.
        keep_masks: read them where they are.
    """

    level: str = "auto"
    keep_masks: bool = False

    def looked_for(self, *, for_training: bool, classes: ClassCount | None, first: Sequence[str] | None) -> Options:
        """The same for one set; ``first``: class names of the first set of the run, None for that set itself."""
        return replace(
            self,
            model_classes=classes,
            expected_names=None if first is None else list(first),
            check_images=self.level in ("full", "headers"),
            decode=self.level == "full",
            # An evaluation sees every image that its set lists.
            policy="error" if self.policy == "skip" and not for_training else self.policy,
            for_training=for_training,
        )

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UserError(
                f"DATASETS.CHECK {self.level!r}: choose from {', '.join(LEVELS)}{nearest(self.level, LEVELS)}"
            )
        check_policy(self.policy)


def check_options_from_config(cfg: CfgNode) -> CheckOptions:
    """What DATASETS, MODEL and TEST say of the check."""
    return CheckOptions(
        level=cfg.DATASETS.CHECK,
        policy=cfg.DATASETS.BROKEN_IMAGES,
        max_megapixels=cfg.DATASETS.MAX_MEGAPIXELS,
        channels=cfg.INPUT.CHANNELS,
        follow_links=cfg.DATASETS.FOLLOW_LINKS,
        drop_unused_root=cfg.DATASETS.DROP_UNUSED_ROOT,
        masks=cfg.MODEL.MASK_ON,
        keypoints=cfg.MODEL.KEYPOINT_ON,
        keep_masks=cfg.INPUT.COPY_PASTE > 0,
        max_detections=cfg.TEST.MAX_DETECTIONS,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def check_sets_from_config(cfg: CfgNode, *, training: bool) -> dict[str, Dataset]:
    """:func:`check_sets` as DATASETS says."""
    train = cfg.DATASETS.TRAIN if training else ()
    options = check_options_from_config(cfg)
    classes = class_count_from_config(cfg)
    return check_sets(train, cfg.DATASETS.TEST, classes=classes, options=options, folder=cfg.OUTPUT_DIR)


def check_sets(
    train: Sequence[str],
    test: Sequence[str],
    *,
    classes: ClassCount | None,
    options: CheckOptions,
    folder: str | os.PathLike | None = None,
) -> dict[str, Dataset]:
    """Check every COCO-format set among ``train`` and ``test`` (registered names).

    Sets of other formats are left alone, and all are with the level "off". All sets have the classes of the first one,
    and get them in its order, whatever ids and order their own file has.

    Args:
        folder: where there is one, ``folder/cache`` keeps what was checked, and all processes map it from there; while
            annotations, images and options are the same, nothing is checked again.

    Returns:
        {name: the set as fixed} of those that were checked.

    Raises:
        UserError: in every process, the first error of the first set that has one.
    """
    sets: dict[str, Dataset] = {}
    first: Dataset | None = None
    for name in dict.fromkeys((*train, *test)):
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") not in ("coco", "pascal_voc") or metadata.get("json_file") is None:
            continue
        if options.level == "off":
            logger.warning("%s: not checked, since DATASETS.CHECK is off", name)
            continue

        found, points = _everywhere(partial(_check, name, name in train, classes, first, options, folder))
        if first is not None and found.class_names != first.class_names:
            order = ", ".join(first.class_names[:5])
            logger.warning("%s: its classes come in the order of the first set, %s", name, order)
            found = found.in_order_of(first.class_names, model=first.source)
        if options.keypoints and metadata.get("keypoint_names") is None:
            metadata.set(keypoint_names=points, keypoint_flip_map=_mirrored(points))
        own = {"thing_classes": found.class_names, "thing_dataset_id_to_contiguous_id": found.class_index()}
        if any(metadata.get(key) not in (None, value) for key, value in own.items()):
            raise UserError(
                f"{metadata.json_file}: its classes are not those registered for the set {name}; register it under "
                "another name with DATASETS.REGISTER"
            )
        metadata.set(**own, image_root=metadata.get("image_root", found.image_root))
        sets[name] = found
        first = first or found
    return sets


def source_of(name: str) -> formats.Source:
    """The set ``name`` in COCO's form, whatever the format of its file. It has an image folder from now on.

    Raises:
        UserError: no such file, or one that cannot be used.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("labels_format") is None:
        document = open_set(metadata.json_file, hint=_where_sets_go(name))
        return formats.Source("coco", document, metadata.image_root, since=time.time_ns())
    if not os.path.exists(metadata.json_file) and metadata.labels_format == "voc":
        raise UserError(f"{metadata.json_file}: no such file; {_where_sets_go(name)}")
    source = formats.read(metadata.json_file, metadata.get("image_root"), metadata.get("thing_classes"))
    for note in source.notes:
        logger.warning("%s: %s", metadata.json_file, note)
    metadata.set(image_root=metadata.get("image_root", source.image_root))
    return source


def unchecked_records(name: str) -> list[dict]:
    """Dataset dicts of a set in another format than COCO's, if no check has read it before."""
    metadata = MetadataCatalog.get(name)
    document = source_of(name).document
    checked = inspect_document(document, metadata.json_file, metadata.image_root, check_images=False)
    checked.raise_errors()
    metadata.set(**checked.metadata())
    return checked.dataset_dicts(masks=True)


@dataclass(frozen=True)
class _Checked:
    """A set and the names of its keypoints, or the file with both and its key."""

    dataset: Dataset | None
    points: list[str]
    file: Path | None = None
    key: str = ""


def _everywhere(check: Callable[[], _Checked]) -> tuple[Dataset, list[str]]:
    """What the main process finds, for all processes: mapped from its file by those that see it."""
    own: list[_Checked] = []

    def decide() -> _Checked:
        own.append(check())
        return replace(own[0], dataset=None) if own[0].file else own[0]

    given = decided_by_main(decide)
    return_memory()
    found = own[0].dataset if own else given.dataset
    if found is None:
        with suppress(OSError, Unusable):
            found, _ = map_columns(given.file, given.key, verify=False)
    if any(comm.all_gather(found is None)):  # another machine, without this folder
        found = decided_by_main(lambda: found)
    assert found is not None
    return found, given.points


def _check(
    name: str,
    for_training: bool,
    classes: ClassCount | None,
    first: Dataset | None,
    options: CheckOptions,
    folder: str | os.PathLike | None,
) -> _Checked:
    """The set as fixed."""
    start = time.perf_counter()
    metadata = MetadataCatalog.get(name)
    json_file = metadata.json_file
    looked_for = options.looked_for(
        for_training=for_training, classes=classes, first=None if first is None else first.class_names
    )
    file = Path(folder, "cache", f"{name.replace(os.sep, '_')}.columns") if folder and os.path.isdir(folder) else None
    key = _key(looked_for, metadata)
    known = None if file is None else _known(file, key, options.level)
    if known is not None:
        dataset, facts = known
        refuse_classes(dataset, looked_for)
        for warning in facts["warnings"]:
            logger.warning("%s", warning)
        logger.info("%s: as checked before, from %s in %.1f s", name, file, time.perf_counter() - start)
        return _Checked(dataset, facts["points"], file, key)
    source = source_of(name)
    document = source.document
    number = len(document["images"]) if isinstance(document.get("images"), Sequence) else 0
    level = options.level
    if level == "auto":
        level = "full" if number <= DECODED_AT_MOST else "headers"
    logger.info("checking %s: %d images, %s", name, number, _DOES[level])
    looked_for = replace(looked_for, check_images=level in ("full", "headers"), decode=level == "full")
    seen = min(source.since, time.time_ns())
    checked = inspect_document(document, json_file, metadata.image_root, looked_for)
    checked.raise_errors()
    warnings = [str(finding) for finding in checked.findings.of("warning")]
    for warning in warnings:
        logger.warning("%s", warning)
    logger.info("checked %s in %.1f s: %s", name, time.perf_counter() - start, _counts(checked))
    if checked.changed():
        logger.info("%s: the records are used as fixed; tools/check_dataset.py --fix writes them", name)
    found, all_there = checked.dataset(masks=options.masks or options.keep_masks), bool(checked.images.keep.all())
    points = _keypoint_names(document, found) if options.keypoints else []
    if file is not None and source.places:
        found = replace(found, places=Texts.of(sorted(source.places)))
    del checked, document, source
    formats.forget()
    if file is None:
        return _Checked(found, points)
    images = _images(found, options.level, seen) if all_there else None
    facts = {"warnings": warnings, "points": points, "seen": seen, "images": images}
    return _kept(found, points, file, key, facts)


def _key(looked_for: Options, metadata: Metadata) -> str:
    """Of all that decides the outcome but the images; of a set of many files not their contents either."""
    json_file, labels = metadata.json_file, metadata.get("labels_format")
    chosen = {key: value for key, value in vars(looked_for).items() if key not in ("model_classes", "expected_names")}
    facts = [__version__, os.path.realpath(json_file), os.path.realpath(metadata.get("image_root", "")), chosen]
    try:
        facts.append((labels, metadata.get("thing_classes")) if labels else digest_of(json_file))
    except (UserError, OSError):  # the check explains it
        facts.append(None)
    return key_of(*facts)


def _images(dataset: Dataset, level: str, seen: int) -> str | None:
    """Changes when images come, go or, unless the level is "json", change, and with the labels of a set of many files.

    None where any has changed since ``seen``, in ns.
    """
    names, root = set(dataset.file_names), dataset.image_root or ""
    labels, newest = formats.state_of(dataset.places or ())
    names = {os.path.dirname(name) if level == "json" or place_in_shard(name) else name for name in names}
    found = hashlib.sha256(labels.encode())
    try:
        for name in sorted(names):
            status = os.stat(os.path.join(root, name))
            newest = max(newest, status.st_mtime_ns)
            found.update(f"{name}\0{status.st_mtime_ns}\0{0 if level == 'json' else status.st_size}\0".encode())
    except (OSError, ValueError):
        return None
    return None if newest >= seen else found.hexdigest()


def _known(file: Path, key: str, level: str) -> tuple[Dataset, dict] | None:
    """What an earlier run has kept of this set, if all is still the same."""

    def read(path: Path) -> tuple[Dataset, dict]:
        dataset, facts = map_columns(path, key)
        if misfit(facts, _FACTS) or _images(dataset, level, facts["seen"]) != facts["images"]:
            raise Unusable("was made when images or labels were others")
        return dataset, facts

    return recalled(file, read)


_FACTS = {"warnings": [str], "points": [str], "seen": int, "images": str}


def _kept(found: Dataset, points: list[str], file: Path, key: str, facts: dict) -> _Checked:
    """The set in its file; in memory where that cannot be written."""

    def write(path: Path) -> _Checked:
        write_columns(path, found, key, facts)
        return _Checked(map_columns(path, key, verify=False)[0], points, path, key)

    return kept(file, write) or _Checked(found, points)


def _keypoint_names(document: dict, found: Dataset) -> list[str]:
    named = next((c["keypoints"] for c in document["categories"] if c.get("keypoints")), ())
    if not named and found.keypoints is not None:
        logger.warning(
            "%s: its categories do not name their keypoints, so a mirrored image keeps left and right as they are; "
            "name them there, or set INPUT.RANDOM_FLIP none",
            found.source,
        )
        named = range(len(next(filter(None, map(found.points, range(len(found)))), ())) // 3)
    return [str(name) for name in named]


def _mirrored(names: Sequence[str]) -> list[tuple[str, str]]:
    """The keypoints that change places when an image is flipped, by their names: left_eye and right_eye."""
    pairs = [(name, name.replace("left", "right")) for name in names if "left" in name]
    return [pair for pair in pairs if pair[1] in names]


_DOES = {
    "full": "decoding every one (DATASETS.CHECK headers is faster)",
    "headers": "reading their headers (DATASETS.CHECK full finds truncated files too)",
    "json": "seeing only that the files are there (DATASETS.CHECK headers compares their sizes too)",
}


def _where_sets_go(name: str) -> str:
    return (
        f"wanted by the set {name}; datasets/README.md shows what goes where, and the environment variable "
        "DETECTRON2_DATASETS names the folder"
    )


def _counts(checked: CheckedDataset) -> str:
    used = f"{int(checked.images.keep.sum())} of {len(checked.document['images'])} images"
    if checked.annotations is not None:
        kept = checked.kept()
        used += f", {int(kept.sum())} of {len(kept)} annotations"
    return f"{used} used; {checked.warnings} records with warnings"
