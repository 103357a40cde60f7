"""The sets of a run as ``resnext-det check --config-file`` looks at them: all that is found, and nothing raised."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ...annotations import formats
from ...annotations.check import CheckedDataset, Options, inspect_document, open_set
from ...errors import listed
from ...weights import ReadOnce
from ..class_count import class_count_from_config
from ..initial_weights import weights_of
from .checked_sets import check_options_from_config, source_of
from .loaders import known_sets, register_sets

_SCORES = "roi_heads.box_predictor.cls_score.weight"


def inspect_sets(
    cfg: CfgNode, options: Options, one: tuple[str, str] | None = None, *, trust_pickle: bool = False
) -> Iterator[tuple[str, CheckedDataset]]:
    """(name, what was found) of every set of DATASETS.TRAIN and TEST, with all that model and evaluation need of it.

    Args:
        options: how images are read and findings listed; what the run needs comes from ``cfg``.
        one: (annotations, image folder) of a set to look at as the training set, in place of the config's own.

    Raises:
        UserError: unknown sets; files or weights that cannot be read.
    """
    names, number = _classes_of_weights(cfg, trust_pickle)
    if one is None:
        register_sets(cfg.DATASETS.REGISTER)
        known_sets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST], "TRAIN and TEST")
    first: list[str] | None = None
    for name in [one[0]] if one else dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        if one is None:
            metadata = MetadataCatalog.get(name)
            if metadata.get("evaluator_type") not in ("coco", "pascal_voc") or metadata.get("json_file") is None:
                continue
            document, file, images = source_of(name).document, metadata.json_file, metadata.image_root
        else:
            file, images = one
            is_coco = os.path.isfile(file) and formats.recognize(file) == "coco"
            document = open_set(file) if is_coco else formats.read(file, images).document
        needed = check_options_from_config(cfg).looked_for(
            for_training=one is not None or name in cfg.DATASETS.TRAIN,
            classes=class_count_from_config(cfg),
            first=first,
        )
        needed = replace(
            needed, check_images=options.check_images, decode=options.decode, workers=options.workers,
            listed=options.listed, strict=options.strict,
        )  # fmt: skip
        checked = inspect_document(document, file, images, needed)
        if checked.categories is not None:
            first = first or checked.categories.names
            _compare_with_weights(checked, names, number)
        yield name, checked


def _classes_of_weights(cfg: CfgNode, trust_pickle: bool) -> tuple[list[str], int | None]:
    """Names and number of the classes of a detector in MODEL.WEIGHTS; none and None for other weights."""
    if not cfg.MODEL.WEIGHTS:
        return [], None
    found = weights_of(cfg, ReadOnce(trust_pickle))
    if _SCORES not in found.tensors:
        return [], None
    return list(found.metadata.get("class_names", ())), len(found.tensors[_SCORES]) - 1


def _compare_with_weights(checked: CheckedDataset, names: Sequence[str], number: int | None) -> None:
    own, add = checked.categories.names, checked.findings.add
    then = "a training starts the heads of the boxes anew, an evaluation is refused"
    if number is not None and (number != len(own) or names and set(names) != set(own)):
        theirs = f"{number} classes" + (f", {listed(map(repr, names), 5)}" if names else "")
        ours = f"{len(own)}, {listed(map(repr, own), 5)}"
        add("warning", "weights-classes", f"MODEL.WEIGHTS tells {theirs} apart, this set {ours}: {then}",
            "give weights of these classes, if they are not to be learned anew", field="categories")  # fmt: skip
    elif names and list(names) != own:
        add("note", "weights-order", "MODEL.WEIGHTS numbers these classes in another order; they are matched by name",
            "nothing to do", field="categories")  # fmt: skip
